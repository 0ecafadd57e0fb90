"""The utilisation of a device by training: model FLOPs utilisation (MFU), and memory.

MFU (https://arxiv.org/abs/2204.02311, appendix B) is the number of FLOPs that the model's forward and backward passes
need per second, as a fraction of the device's peak. Operations that are recomputed count once.
"""

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

TERA = 1e12
# Peak of dense matrix products by the vendors' data sheets, in 10^12 FLOP/s: bf16, fp16, float32 (TF32 where it
# exists). None: the device has no such unit. A name that is a prefix of another one comes after it.
PEAKS: dict[str, tuple[float | None, float | None, float | None]] = {
    "B200": (2250, 2250, 1125),
    "GH200": (989.5, 989.5, 494.5),
    "H200 NVL": (835.5, 835.5, 417.5),
    "H200": (989.5, 989.5, 494.5),
    "H100 NVL": (835.5, 835.5, 417.5),
    "H100 PCIe": (756.5, 756.5, 378),
    "H100": (989.5, 989.5, 494.5),
    "A100": (312, 312, 156),
    "A40": (149.7, 149.7, 74.8),
    "A30": (165, 165, 82),
    "A10G": (70, 70, 35),
    "A10": (125, 125, 62.5),
    "L40S": (362, 362, 183),
    "L40": (181, 181, 90.5),
    "L4": (121, 121, 60),
    "RTX 5090": (209.5, 209.5, 104.8),
    "RTX 4090": (165.2, 165.2, 82.6),
    "RTX 3090": (71, 71, 35.6),
    "RTX A6000": (154.8, 154.8, 77.4),
    "V100-SXM2": (None, 125, 15.7),
    "V100-PCIE": (None, 112, 14),
    "T4": (None, 65, 8.1),
    "MI300X": (1307.4, 1307.4, None),
}
OTHER = re.compile(r"\b(MIG|Laptop|Max-Q|D)\b")  # in a device's name: slower than the device of the plain name
COLUMN = {"bf16": 0, "fp16": 1, "float32": 2, "bf16_products": 2}
MEASURE = 0.2  # seconds of measuring a CPU
WORTH = 10.0  # seconds; MFU is left out of shorter runs
CPU = 1e11  # FLOP/s assumed of a CPU before it is measured


@dataclass
class ThroughputMonitor:
    """Computes the MFU of a training and the memory in use.

    device: a device of the training
    flops: FLOPs of training on one token; peak: FLOP/s of all devices together; both None if they are unknown
    source: origin of the peak, ``published`` or ``measured``
    """

    device: torch.device
    flops: float | None = None
    peak: float | None = None
    source: str | None = None

    def read(self, tokens_per_second: float) -> dict[str, float]:
        """``mfu``, a fraction of the peak, and ``memory_bytes``, if they are known.

        The memory is the largest so far on a GPU, and the process's present one elsewhere.
        """
        mfu = self.flops * tokens_per_second / self.peak if self.flops and self.peak else None
        values = {"mfu": mfu, "memory_bytes": used_memory_bytes(self.device)}
        return {name: value for name, value in values.items() if value is not None}


def build_monitor(
    device: torch.device, precision: str, devices: int, work: float, flops: Callable[[], float]
) -> ThroughputMonitor:
    """The monitor of a training on ``devices`` devices like ``device``.

    MFU is left out of runs of seconds, in which measuring the peak would take a noticeable time, and if no peak is
    known.

    work: lower bound of the FLOPs of the whole training; flops: computes those of one token
    """
    peak = published_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if work < WORTH * devices * (peak or CPU) or not (peak or device.type == "cpu"):
        return ThroughputMonitor(device)
    source = "published" if peak else "measured"
    peak = peak or measured_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
    return ThroughputMonitor(device, flops(), peak * devices, source)


def published_peak(name: str, precision: str) -> float | None:
    """FLOP/s of a GPU by its name; None if ``PEAKS`` lacks it."""
    column = COLUMN.get(precision)
    if column is None or OTHER.search(name):
        return None
    found = (peaks for known, peaks in PEAKS.items() if re.search(rf"\b{re.escape(known)}\b", name))
    peak = next(found, (None, None, None))[column]
    return None if peak is None else peak * TERA


@torch.no_grad()
def measured_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several matrix products on the CPU, with the present threads and settings."""
    matrix = torch.full((1024, 1024), 0.5, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + MEASURE
    while best == float("inf") or time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - begun)
    return 2 * 1024**3 / best


def used_memory_bytes(device: torch.device) -> int | None:
    """Bytes in use: the peak so far on a GPU, else of this process now; None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(ImportError):  # Windows has neither
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the largest so far, not the present one
        return peak if sys.platform == "darwin" else peak * 1024
    return None
