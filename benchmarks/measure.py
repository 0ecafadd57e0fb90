"""Interleaved measurements: every variant once a round, so that whatever else the machine does hits all alike."""

import platform
import re
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

MIB = 2**20


@dataclass
class Variant:
    """One thing to time: ``run`` does the work; ``work`` is how many tokens that is."""

    name: str
    run: Callable[[], object]
    work: int
    peer: bool = False
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        quarters = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else [0.0, 0.0, 0.0]
        return (quarters[2] - quarters[0]) / 2 / self.median


def interleave(variants: list[Variant], rounds: int, warmup: int = 1) -> None:
    """Time every variant once a round, after ``warmup`` untimed rounds."""
    for index in range(warmup + rounds):
        for variant in variants:
            synchronise()
            begun = time.perf_counter()
            variant.run()
            synchronise()
            if index >= warmup:
                variant.seconds.append(time.perf_counter() - begun)


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: torch.device) -> str:
    """The machine in one line."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def copy_bandwidth(device: torch.device, mebibytes: int = 512) -> float:
    """Bytes per second that a read of memory reaches: half of what a copy, which also writes, moves."""
    source = torch.ones(mebibytes * MIB // 4, device=device)
    target = torch.empty_like(source)
    copy = Variant("copy", lambda: target.copy_(source), 0)
    interleave([copy], rounds=5)
    return 2 * source.nbytes / copy.median


def forget_peak() -> None:
    """Let the peak of memory count from now on, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes used at once: of the GPU, or by the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM")


def held_memory() -> int:
    """Bytes in use: of the GPU, or by the process."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _resident("VmRSS")


def _resident(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns, the first one to the left."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [header, rule, *rows]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    )


def write_section(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between ``<!-- measured NAME -->`` and ``<!-- end measured NAME -->``.

    Raises:
        SystemExit: the page has no such section.
    """
    old = page.read_text()
    section = re.compile(rf"(<!-- measured {re.escape(name)} -->\n).*?(<!-- end measured {re.escape(name)} -->)", re.S)
    if not section.search(old):
        raise SystemExit(f"{page} has no line '<!-- measured {name} -->'")
    page.write_text(section.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", old))
