"""Parallel strategies, one file each, which distribute a training over several processes.

Importing this package imports all files of its folder, which registers their strategies.
"""

from modular_gpt.core.registry import import_folder
from modular_gpt.distributed.strategy import Parallel, ParallelConfig, Tensors, build_parallel, supports

__all__ = ["Parallel", "ParallelConfig", "Tensors", "build_parallel", "supports"]

import_folder(__name__, __path__)
