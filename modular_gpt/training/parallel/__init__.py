"""Ways to share the work of a run among processes, one file each."""

from modular_gpt.training.parallel.base import Parallel, ParallelConfig, Tensors, build_parallel, fits
from modular_gpt.training.parallel.data import DataParallel

__all__ = ["DataParallel", "Parallel", "ParallelConfig", "Tensors", "build_parallel", "fits"]
