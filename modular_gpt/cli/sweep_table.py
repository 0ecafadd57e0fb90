"""The results of a sweep as a printed table, and in CSV and JSON files."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from modular_gpt.core.atomic_files import write_text

HEADINGS = ("run", "parameters", "validation loss", "bits per byte", "tokens/s")
ONE_SEED = (
    "Each row is one run with one seed: a difference between two rows may be smaller than that between two seeds."
    " Add seed=1,2,3 to see it."
)
FEW_SEEDS = "Loss and bits per byte are means over seeds; +- is their standard deviation, of single runs."
NOT_SHOWN = "Sizes, times and best learning rates may differ: mgpt-compare makes them equal and gives verdicts."


@dataclass
class JobResult:
    """The outcome of one run of a sweep.

    settings: the overrides of the run except its seed
    message: the reason for missing metrics; empty for a run that finished
    """

    number: int
    name: str
    seed: int
    settings: list[str]
    code: int = 0
    message: str = ""
    directory: str = ""
    parameters: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None


@dataclass
class Group:
    """The finished runs with the same settings except for the seed."""

    name: str
    results: list[JobResult] = field(default_factory=list)

    def row(self) -> tuple[str, ...]:
        """The row of the table: means over seeds, with the standard deviation if there are several."""
        losses = [result.loss or 0.0 for result in self.results]
        bits = [result.bits_per_byte for result in self.results if result.bits_per_byte is not None]
        speeds = [result.tokens_per_second or 0.0 for result in self.results]
        name = f"{self.name} ({len(losses)} seeds)" if len(losses) > 1 else self.name
        parameters = f"{self.results[0].parameters:,}"
        bits_per_byte = _mean(bits, 3) if bits else "-"
        return name, parameters, _mean(losses, 4), bits_per_byte, f"{statistics.fmean(speeds):,.0f}"


def _mean(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def grouped(results: Sequence[JobResult]) -> list[Group | JobResult]:
    """Finished runs grouped by their settings, and other runs singly, in the order of the first run of each group."""
    groups: dict[str, Group] = {}
    order: list[Group | JobResult] = []
    repeated = [json.dumps(result.settings) for result in results if not result.message]
    for result in results:
        key = json.dumps(result.settings)
        if result.message:
            order.append(result)
        elif key in groups:
            groups[key].results.append(result)
        else:
            name = result.name if repeated.count(key) == 1 else _without_seed(result.name)
            groups[key] = Group(name, [result])
            order.append(groups[key])
    return order


def _without_seed(name: str) -> str:
    return "-".join(setting for setting in name.split("-") if not setting.startswith("seed=")) or "default"


def table(results: Sequence[JobResult]) -> str:
    """The printed table; the row of a run without metrics has the reason instead."""
    rows = [HEADINGS, *(item.row() if isinstance(item, Group) else _reason(item) for item in grouped(results))]
    complete = [row for row in rows if len(row) == len(HEADINGS)]
    name_width = max(len(row[0]) for row in rows)
    widths = [max(len(row[column]) for row in complete) for column in range(1, len(HEADINGS))]
    lines = []
    for name, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths, strict=False)] if len(rest) > 1 else rest
        lines.append(f"{name:<{name_width}}  {'  '.join(cells)}")
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _reason(result: JobResult) -> tuple[str, ...]:
    return result.name, result.message


def remarks(results: Sequence[JobResult]) -> str:
    """A line below the table about its limits, such as the number of seeds."""
    groups = [item for item in grouped(results) if isinstance(item, Group)]
    seeds = any(len(group.results) > 1 for group in groups)
    return f"{FEW_SEEDS if seeds else ONE_SEED} {NOT_SHOWN}"


def save(folder: Path, results: Sequence[JobResult]) -> None:
    """Write ``results.csv`` and ``results.json``, with a row or an object for each run.

    Raises:
        OSError: the folder cannot be written.
    """
    names = [column.name for column in fields(JobResult)]
    lines = io.StringIO()
    writer = csv.DictWriter(lines, names, lineterminator="\n")
    writer.writeheader()
    for result in results:
        writer.writerow({**asdict(result), "settings": " ".join(result.settings)})
    write_text(folder / "results.csv", lines.getvalue())
    write_text(folder / "results.json", json.dumps([asdict(result) for result in results], indent=2) + "\n")
