"""Keep the memory that a training on a CPU frees, instead of giving it back to the system.

Every step allocates the same large blocks. By default the C library returns a block of more than 32 MiB to the system
as soon as it is free, and the next one consists of new pages, each cleared and mapped on first touch: a quarter of the
time of a step.
"""

import ctypes
import os
import sys

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
PAD = 64 * 2**20  # bytes by which the heap grows, at least


def keep_memory() -> None:
    """Let this process keep the memory that it frees, in huge pages where the system has them.

    To be called before the first tensor is made, since PyTorch reads its variable once; a value of the user's stays.
    Does nothing on machines with a GPU; with other C libraries than glibc, huge pages alone are used.
    """
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # blocks of 2 MiB and more ask for huge pages
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(MMAP_MAX, 0)  # large blocks come from the heap too,
    library.mallopt(TRIM_THRESHOLD, -1)  # whose end is never given back
    library.mallopt(TOP_PAD, PAD)
