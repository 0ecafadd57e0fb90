"""Sums over a batch whose rows are distributed over processes.

Components sum statistics of the whole batch with ``all_reduce_sum``, such as the load of each expert. A data-parallel
training loop enters ``data_parallel_region``; outside it the sum is the local value.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

_shared = False  # not a context variable: autograd recomputes forward passes in threads of its own


@contextmanager
def data_parallel_region() -> Iterator[None]:
    """Context manager: each process of torch.distributed's default group holds some rows of one batch."""
    global _shared
    before, _shared = _shared, True
    try:
        yield
    finally:
        _shared = before


def all_reduce_sum(counts: Tensor) -> Tensor:
    """Sum ``counts`` over the processes of ``data_parallel_region``, without gradients; outside it, ``counts``."""
    if _shared:
        counts = counts.detach().clone()
        dist.all_reduce(counts)
    return counts
