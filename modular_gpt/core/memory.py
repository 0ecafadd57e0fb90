"""The memory that a process can still allocate, and a format of sizes."""

from contextlib import suppress
from pathlib import Path

import torch

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still allocate on a device; None if unknown."""
    if device.type == "cuda":  # memory that PyTorch's allocator has reserved and not allocated is free, too
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    path = Path("/proc/meminfo")
    if device.type != "cpu" or not path.is_file():
        return None
    free = next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if "MemAvailable" in line)
    for limit, used in CGROUPS:  # of a container
        with suppress(OSError, ValueError):
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, free)


def gibibytes(count: int) -> str:
    """Format a number of bytes in GiB, to one decimal."""
    tenths = count * 10 // 2**30
    return f"{tenths // 10:,}.{tenths % 10} GiB"
