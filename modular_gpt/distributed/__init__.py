"""Parallel strategies, one file each, which divide a training among processes.

Importing this package registers them all: it imports its own folder.
"""

from modular_gpt.core.registry import import_folder
from modular_gpt.distributed.strategy import Parallel, ParallelConfig, Tensors, build_parallel, supports

__all__ = ["Parallel", "ParallelConfig", "Tensors", "build_parallel", "supports"]

import_folder(__name__, __path__)
