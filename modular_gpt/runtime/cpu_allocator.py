"""Settings of the memory allocator for training on a CPU: freed memory stays in the process.

Every step allocates the same large blocks. By default the C library returns a freed block of more than 32 MiB to the
system, and the next block consists of new pages, which the system clears and maps at their first use. This takes a
quarter of the time of a step.
"""

import ctypes
import os
import sys

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of mallopt(3)
PAD = 64 * 2**20  # minimum number of bytes by which the heap grows


def keep_memory() -> None:
    """Keep freed memory in this process, and use huge pages if the system supports them.

    It must be called before the first tensor is allocated, since PyTorch reads its variable once. A variable set by the
    user is not changed. On machines with a GPU and on other systems than Linux, nothing is changed; with another C
    library than glibc, only huge pages are enabled.
    """
    if torch.cuda.is_available() or not sys.platform.startswith("linux"):
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for blocks of 2 MiB and more
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    library.mallopt(MMAP_MAX, 0)  # large blocks are allocated on the heap, too
    library.mallopt(TRIM_THRESHOLD, -1)  # the heap never shrinks
    library.mallopt(TOP_PAD, PAD)
