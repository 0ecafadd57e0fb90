"""Data parallelism: https://arxiv.org/abs/2006.15704"""

from dataclasses import dataclass
from inspect import signature

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.distributed.strategy import Parallel, ParallelConfig
from modular_gpt.runtime.processes import ProcessGroup


class DataParallel(Parallel, name="ddp"):
    """Each process holds the whole model and computes its rows of each batch; gradients are summed (PyTorch's DDP)."""

    @dataclass
    class Config(ParallelConfig):
        """Settings of data parallelism."""

    def __init__(self, config: Config, processes: ProcessGroup) -> None:
        super().__init__(config, processes)
        self.data_rank, self.data_world = processes.rank, processes.world

    def wrap(self, module: nn.Module) -> nn.Module:
        # no broadcast of buffers: components compute them from sums over all processes, so they are equal everywhere
        parameters = signature(DistributedDataParallel).parameters
        former = "broadcast_buffers"  # name of the argument before torch 2.13
        options: PlainDict = {"forward_sync_buffers" if "forward_sync_buffers" in parameters else former: False}
        self.wrapped = DistributedDataParallel(module, gradient_as_bucket_view=True, **options)
        return self.wrapped

    def set_grad_sync(self, last: bool) -> None:
        self.wrapped.require_backward_grad_sync = last  # the attribute that DistributedDataParallel.no_sync sets
