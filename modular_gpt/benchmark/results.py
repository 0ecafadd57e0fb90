"""Results of a benchmark, and quantities derived from them."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from modular_gpt.benchmark.workloads import Cell
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.runtime.timing import spread


@dataclass(frozen=True)
class Variant:
    """A model to measure; either ``config`` or ``checkpoint`` is given.

    config: settings of a GPTConfig; checkpoint: name that ``load_model`` opens
    """

    name: str
    config: PlainDict | None = None
    checkpoint: str | None = None


@dataclass
class Measurement:
    """The measurement of one variant in one cell.

    tokens: number of tokens that a run processes
    flops, bytes_read: operations, and bytes read from memory, in a run; 0 if they do not bound its speed
    memory: peak bytes of a run beyond those allocated before it
    parameters: number of parameters of the model
    cache_predicted, cache_allocated: bytes of the cache, in decoding only
    seconds: duration of the run in each round
    ratios: duration of the first variant divided by that of this one, in each round; empty if the first variant failed
    failure: reason why the measurement failed, or ""
    """

    variant: str
    cell: Cell
    tokens: int = 0
    flops: float = 0.0
    bytes_read: float = 0.0
    memory: int = 0
    parameters: int = 0
    cache_predicted: int = 0
    cache_allocated: int = 0
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    failure: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, from the median duration."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range of the durations, as a fraction of their median."""
        return spread(self.seconds)

    @property
    def speed(self) -> float | None:
        """Speed relative to the first variant, the median of ``ratios``; None if the first variant failed."""
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(frozen=True)
class Peaks:
    """Peak speeds of this machine.

    flops: FLOP/s of matrix products in the precision of the benchmark
    bandwidth: memory bandwidth in bytes/s
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class BenchmarkResults:
    """The results of a benchmark.

    machine: description of the machine in one line
    warning: warning about other load on the machine, or ""
    precision: precision of training, and of the weights in prefill and decoding
    """

    measurements: list[Measurement]
    peaks: Peaks
    machine: str
    warning: str
    precision: str

    @property
    def variants(self) -> list[str]:
        """The names of the variants; ratios are relative to the first."""
        return list(dict.fromkeys(m.variant for m in self.measurements))

    def by_cell(self) -> Mapping[Cell, list[Measurement]]:
        """The measurements of each cell, in the order of the variants."""
        cells: dict[Cell, list[Measurement]] = {}
        for m in self.measurements:
            cells.setdefault(m.cell, []).append(m)
        return cells

    def of(self, variant: str, measure: str) -> list[Measurement]:
        """The successful measurements of one variant and workload, sorted by batch size, then by context length."""
        succeeded = [m for m in self.measurements if not m.failure]
        selected = [m for m in succeeded if m.variant == variant and m.cell.measure == measure]
        return sorted(selected, key=lambda m: (m.cell.batch, m.cell.context))

    def share_of_peak(self, measurement: Measurement) -> float | None:
        """The fraction of the machine's peak bandwidth in decoding, else of its peak FLOP/s; None if unknown."""
        seconds = statistics.median(measurement.seconds)
        if measurement.cell.measure == "decode":
            return measurement.bytes_read / seconds / self.peaks.bandwidth if self.peaks.bandwidth else None
        return measurement.flops / seconds / self.peaks.flops if self.peaks.flops else None
