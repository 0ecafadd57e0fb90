"""Memory that a process can still get, and sizes in words."""

from contextlib import suppress
from pathlib import Path

import torch

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_bytes(device: torch.device) -> int | None:
    """Bytes that this process can still get on a device; None if it is unknown."""
    if device.type == "cuda":  # what PyTorch keeps for later is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    path = Path("/proc/meminfo")
    if device.type != "cpu" or not path.is_file():
        return None
    free = next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if "MemAvailable" in line)
    for limit, used in CGROUPS:  # of a container
        with suppress(OSError, ValueError):
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, free)


def gibibytes(count: int) -> str:
    """Bytes in GiB, to one decimal."""
    tenths = count * 10 // 2**30
    return f"{tenths // 10:,}.{tenths % 10} GiB"
