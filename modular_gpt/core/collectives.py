"""Counts over a batch of which several processes have some rows each.

What a part needs to know of the whole batch while it trains, such as how often each expert was chosen, it sums here.
One process alone has the whole batch. A training loop that shares batches says so by ``data_parallel_region``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

_shared = False  # no context variable: a backward pass, which repeats forward passes, has threads of its own


@contextmanager
def data_parallel_region() -> Iterator[None]:
    """While the block runs, the processes of torch.distributed's default group train on shares of one batch."""
    global _shared
    before, _shared = _shared, True
    try:
        yield
    finally:
        _shared = before


def all_reduce_sum(counts: Tensor) -> Tensor:
    """The sum of ``counts`` over all processes that share the batch, without a gradient."""
    if _shared:
        counts = counts.detach().clone()
        dist.all_reduce(counts)
    return counts
