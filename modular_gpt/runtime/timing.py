"""Measurement of time, peak speeds and memory; runs are interleaved, so that other load affects variants equally."""

import os
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from modular_gpt.runtime.device import cpu_name

MIB = 2**20
MATRIX = 2048  # rows of the matrix products that measure FLOP/s
BUSY = 0.5  # load per core above which a machine counts as busy


@dataclass
class Timed:
    """A workload to time.

    run: function that performs the work once; tokens: number of tokens that it processes
    peer: whether this is an implementation to compare with
    seconds: durations of the timed runs
    """

    name: str
    run: Callable[[], object]
    tokens: int
    peer: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median duration of a run in seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range of the durations, as a fraction of their median."""
        return spread(self.seconds)


def spread(values: list[float]) -> float:
    """Half the interquartile range as a fraction of the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4)
    return (quartiles[2] - quartiles[0]) / 2 / statistics.median(values)


def interleave(timed: list[Timed], rounds: int, warmup: int = 1) -> None:
    """Time every workload once per round, after ``warmup`` untimed rounds."""
    for index in range(warmup + rounds):
        for entry in timed:
            seconds = timed_run(entry.run)
            if index >= warmup:
                entry.seconds.append(seconds)


def timed_run(run: Callable[[], object]) -> float:
    """The duration of a call in seconds, including its work on the GPU."""
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: torch.device) -> str:
    """Describe the machine in one line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def busy() -> str:
    """A warning if the load per core exceeds ``BUSY``; "" otherwise, or if the load is unknown."""
    try:
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
    except (OSError, AttributeError):
        return ""
    if load <= BUSY * cores:
        return ""
    return f"this machine is busy (load {load:.1f} on {cores} cores): times are longer, and ratios less certain"


def copy_bandwidth(device: torch.device, mebibytes: int = 512) -> float:
    """The bandwidth of memory in bytes per second: bytes read and written by a large copy, the best of five runs."""
    source = torch.ones(mebibytes * MIB // 4, device=device)
    target = torch.empty_like(source)
    copy = Timed("copy", lambda: target.copy_(source), 0)
    interleave([copy], rounds=5)
    return 2 * source.nbytes / min(copy.seconds)


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of five runs."""
    matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
    product = Timed("product", lambda: matrix @ matrix, 0)
    interleave([product], rounds=5)
    return 2 * MATRIX**3 / min(product.seconds)


def reset_peak_memory() -> None:
    """Reset the peak that ``peak_memory`` returns, if the system supports it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak of ``current_memory`` in bytes."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")


def current_memory() -> int:
    """Bytes allocated on the GPU if there is one, otherwise bytes of the process's resident memory."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _resident("VmRSS")


def _resident(name: str) -> int:
    """The bytes of a field of /proc/self/status; elsewhere the peak of the process's resident memory."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
