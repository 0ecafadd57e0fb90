"""Ways to share the work of a run among processes, one file each."""

from modular_gpt.training.parallel.base import Parallel, ParallelConfig, Tensors, build_parallel, fits
from modular_gpt.training.parallel.data import DataParallel
from modular_gpt.training.parallel.sharded import FullyShardedDataParallel
from modular_gpt.training.parallel.tensors import TensorParallel

__all__ = [
    "DataParallel",
    "FullyShardedDataParallel",
    "Parallel",
    "ParallelConfig",
    "TensorParallel",
    "Tensors",
    "build_parallel",
    "fits",
]
