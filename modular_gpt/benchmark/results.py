"""Results of a benchmark, and quantities derived from them."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from modular_gpt.benchmark.workloads import Cell
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.runtime.timing import spread


@dataclass(frozen=True)
class Variant:
    """A model to measure.

    config: settings of a GPTConfig; checkpoint: a name that ``load_model`` opens. One of them is given.
    """

    name: str
    config: PlainDict | None = None
    checkpoint: str | None = None


@dataclass
class Measurement:
    """The measurement of one variant in one cell.

    tokens: processed in a run; flops, bytes_read: of a run, 0 where they are not the bound
    memory: peak bytes beyond those held before; parameters: of the model
    cache_predicted, cache_allocated: bytes, of decoding only
    seconds: of the run of each round; ratios: seconds of the first variant over these, within each round
    failure: why there are no numbers, or ""
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
        """Median over the rounds."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the seconds, as a fraction of their median."""
        return spread(self.seconds)

    @property
    def speed(self) -> float:
        """Speed relative to the first variant: the median of the ratios within the rounds."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Peaks:
    """Peak speeds of this machine: FLOP/s of matrix products in the benchmark's precision, bytes/s read from memory."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class BenchmarkResults:
    """All measurements of a benchmark.

    machine: the machine in one line; warning: a sentence if it was busy, or ""; precision: of the arithmetic
    """

    measurements: list[Measurement]
    peaks: Peaks
    machine: str
    warning: str
    precision: str

    @property
    def variants(self) -> list[str]:
        """The names of the variants; ratios are relative to the first."""
        return list(dict.fromkeys(found.variant for found in self.measurements))

    def by_cell(self) -> Mapping[Cell, list[Measurement]]:
        """The measurements of each cell, in the order of the variants."""
        cells: dict[Cell, list[Measurement]] = {}
        for found in self.measurements:
            cells.setdefault(found.cell, []).append(found)
        return cells

    def of(self, variant: str, measure: str) -> list[Measurement]:
        """The measurements of one variant that succeeded, by context and batch."""
        found = [m for m in self.measurements if m.variant == variant and m.cell.measure == measure and not m.failure]
        return sorted(found, key=lambda m: (m.cell.batch, m.cell.context))

    def share_of_peak(self, found: Measurement) -> float | None:
        """The fraction of the machine's peak: of bandwidth in decoding, else of arithmetic; None if unknown."""
        seconds = statistics.median(found.seconds)
        if found.cell.measure == "decode":
            return found.bytes_read / seconds / self.peaks.bandwidth if self.peaks.bandwidth else None
        return found.flops / seconds / self.peaks.flops if self.peaks.flops else None
