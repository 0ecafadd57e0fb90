"""Data parallelism: https://arxiv.org/abs/2006.15704"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modular_gpt.distributed.strategy import Parallel, ParallelConfig
from modular_gpt.runtime.processes import ProcessGroup


class DataParallel(Parallel, name="ddp"):
    """Each process has the whole model and computes its share of each batch; gradients are summed (PyTorch's DDP)."""

    @dataclass
    class Config(ParallelConfig):
        """Settings."""

    def __init__(self, config: Any, processes: ProcessGroup) -> None:
        super().__init__(config, processes)
        self.part, self.parts = processes.rank, processes.world

    def wrap(self, module: nn.Module) -> nn.Module:
        # buffers are alike everywhere, since parts make them from sums over all processes, and need not be sent
        known = signature(DistributedDataParallel).parameters
        sending = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # before 2.13
        options: dict[str, Any] = {sending: False}
        self.wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
        return self.wrapped

    def set_grad_sync(self, last: bool) -> None:
        self.wrapped.require_backward_grad_sync = last  # what DistributedDataParallel.no_sync sets
