"""Collectives that components use, each the identity in one process.

Data parallelism distributes the rows of a batch over processes: components sum statistics of the whole batch with
``all_reduce_sum``, such as the load of each expert. A data-parallel training loop enters ``data_parallel_region``;
outside it the sum is the local value. Tensor parallelism divides tensors over the processes of a ``ShardGroup``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# the processes among which rows are divided; not a context variable, since autograd recomputes in other threads
_rows: dist.ProcessGroup | None = None


@contextmanager
def data_parallel_region() -> Iterator[None]:
    """Context manager: each process of torch.distributed's default group holds some rows of one batch."""
    global _rows
    before, _rows = _rows, dist.group.WORLD
    try:
        yield
    finally:
        _rows = before


def divide_rows_among(group: dist.ProcessGroup | None) -> None:
    """Until the end of the region, rows are divided among the processes of ``group`` only; None: among none."""
    global _rows
    _rows = group


def all_reduce_sum(counts: Tensor) -> Tensor:
    """Sum ``counts`` over the processes of ``data_parallel_region``, without gradients; outside it, ``counts``."""
    return counts if _rows is None else _reduced(counts.detach(), _rows)


class ShardGroup:
    """The processes that share the model's tensors in tensor parallelism, by default one process with full tensors.

    Gradients follow https://arxiv.org/abs/1909.08053. A tensor that every process holds passes through ``copied``
    before each process computes its shard from it; a summand of each process passes through ``summed`` afterwards.

    rank: index of this process; size: number of processes
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank(), group.size())

    def copied(self, x: Tensor) -> Tensor:
        """``x`` unchanged; the backward pass sums the gradients of all processes."""
        if self.group is None:
            return x
        out: Tensor = _Copied.apply(x, self.group)
        return out

    def summed(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes; in the backward pass each process gets the gradient of the sum."""
        if self.group is None:
            return x
        out: Tensor = _Summed.apply(x, self.group)
        return out

    def largest(self, x: Tensor) -> Tensor:
        """The elementwise maximum over the processes, without gradients."""
        return x if self.group is None else _reduced(x.detach(), self.group, dist.ReduceOp.MAX)

    def smallest(self, x: Tensor) -> Tensor:
        """The elementwise minimum over the processes, without gradients."""
        return x if self.group is None else _reduced(x.detach(), self.group, dist.ReduceOp.MIN)

    def bounds(self, count: int) -> tuple[int, int]:
        """The first index and the end, exclusive, of this process's shard of ``count`` items.

        Shards are those of DTensor's ``Shard(0)`` and of ``torch.chunk``: later ones may be smaller.
        """
        size = -(-count // self.size)
        return min(self.rank * size, count), min((self.rank + 1) * size, count)


NOT_SHARDED = ShardGroup()


def local_shard(tensor: Tensor) -> Tensor:
    """The local shard of a DTensor, with gradients; any other tensor is returned unchanged."""
    to_local = getattr(tensor, "to_local", None)  # of a DTensor, whose module takes long to import
    out: Tensor = tensor if to_local is None else to_local()
    return out


def _reduced(x: Tensor, group: dist.ProcessGroup, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, operation, group)
    return x


class _Copied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduced(grad, ctx.group), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _reduced(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
