"""How much of a device a training uses: its share of the peak arithmetic (MFU), and memory.

Model FLOPs utilisation (https://arxiv.org/abs/2204.02311, appendix B) is the arithmetic that the model needs, forward
and backward, over what the device could do at best in the same time. What is computed twice counts once.
"""

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from modular_gpt.model.config import GPTConfig
from modular_gpt.training.estimate import WHOLE, flops_per_token
from modular_gpt.training.lora import LoraConfig

TERA = 1e12
# Dense products by the makers' data sheets, in 10^12 FLOP/s: bf16, fp16, float32 (as TF32 where there is that). None
# where the device has no such unit. A name that begins another one stands after it.
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
OTHER = re.compile(r"\b(MIG|Laptop|Max-Q|D)\b")  # in a device's name: less than what the name before it promises
COLUMN = {"bf16": 0, "fp16": 1, "float32": 2, "bf16_products": 2}
MEASURE = 0.2  # seconds that a CPU is measured for
WORTH = 10.0  # seconds that a run must take at the very least for its peak to be looked for
CPU = 1e11  # FLOP/s of a CPU, to judge that before it is measured


@dataclass
class ThroughputMonitor:
    """Reads a device.

    flops: of training on one token; peak: of all devices together, FLOP/s, or None where it is not known
    source: of the peak, ``published`` or ``measured``
    """

    device: torch.device
    flops: float | None = None
    peak: float | None = None
    source: str | None = None

    def read(self, tokens_per_second: float) -> dict[str, float]:
        """``mfu``, a share, and ``memory_bytes``, as far as they are known.

        The memory is the most that was in use on a GPU so far, and what the process holds now elsewhere.
        """
        mfu = self.flops * tokens_per_second / self.peak if self.flops and self.peak else None
        values = {"mfu": mfu, "memory_bytes": memory_bytes(self.device)}
        return {name: value for name, value in values.items() if value is not None}


def build_meter(
    config: GPTConfig,
    parameters: int,
    tokens: int,
    device: torch.device,
    precision: str,
    devices: int = 1,
    frozen: Sequence[str] = (),
    lora: LoraConfig = WHOLE,
) -> ThroughputMonitor:
    """A meter for training a model, but for what is frozen, or adapters of it, on so many tokens.

    MFU is left out of a run of seconds, in which looking for it would be felt, and where no peak is known.
    """
    peak = published_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    if 6 * parameters * tokens < WORTH * devices * (peak or CPU) or not (peak or device.type == "cpu"):
        return ThroughputMonitor(device)
    source = "published" if peak else "measured"
    peak = peak or measured_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
    return ThroughputMonitor(device, flops_per_token(config, frozen, lora), peak * devices, source)


def published_peak(name: str, precision: str) -> float | None:
    """FLOP/s of a GPU by its name; None where the table does not have it."""
    column = COLUMN.get(precision)
    if column is None or OTHER.search(name):
        return None
    found = (peaks for known, peaks in PEAKS.items() if re.search(rf"\b{re.escape(known)}\b", name))
    peak = next(found, (None, None, None))[column]
    return None if peak is None else peak * TERA


@torch.no_grad()
def measured_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some products of matrices on the CPU, with the threads and settings as they are."""
    matrix = torch.full((1024, 1024), 0.5, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + MEASURE
    while best == float("inf") or time.perf_counter() < end:
        begun = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - begun)
    return 2 * 1024**3 / best


def memory_bytes(device: torch.device) -> int | None:
    """Bytes in use: at most so far on a GPU, else now by this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    with suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with suppress(ImportError):  # Windows has neither
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # not now, but at most so far
        return most if sys.platform == "darwin" else most * 1024
    return None
