"""Ways to share the work of a run among processes, one file each."""

from modular_gpt.distributed.ddp import DataParallel
from modular_gpt.distributed.fsdp import FullyShardedDataParallel
from modular_gpt.distributed.strategy import Parallel, ParallelConfig, Tensors, build_parallel, supports
from modular_gpt.distributed.tensor_parallel import TensorParallel

__all__ = [
    "DataParallel",
    "FullyShardedDataParallel",
    "Parallel",
    "ParallelConfig",
    "TensorParallel",
    "Tensors",
    "build_parallel",
    "supports",
]
