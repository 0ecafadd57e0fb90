"""The results of a benchmark as text, CSV and a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from modular_gpt.benchmark.figure import draw
from modular_gpt.benchmark.reading import reading
from modular_gpt.benchmark.results import BenchmarkResults, Measurement
from modular_gpt.runtime.timing import MIB

TITLES = {"train": "Training step", "prefill": "Prefill", "decode": "Decoding"}
COLUMNS = (
    *("variant", "measure", "context", "batch", "parameters", "tokens_per_second", "spread", "relative_speed"),
    *("share_of_peak", "flops_per_token", "memory_bytes", "cache_predicted_bytes", "cache_allocated_bytes", "failure"),
)


def text_report(results: BenchmarkResults) -> str:
    """Format the tables in Markdown, and the summary in sentences."""
    sections = [f"Measured on {results.machine}, in {results.precision}."]
    if results.warning:
        sections.append(f"Warning: {results.warning}.")
    for measure, title in TITLES.items():
        measurements = [m for m in results.measurements if m.cell.measure == measure]
        if measurements:
            sections += [f"### {title}", _table(results, measurements, measure)]
    failures = [f"{m.variant} at {m.cell.context:,} tokens: {m.failure}." for m in results.measurements if m.failure]
    return "\n\n".join([*sections, *failures, *reading(results)])


def save_report(results: BenchmarkResults, folder: Path) -> list[Path]:
    """Write benchmark.md, benchmark.csv and benchmark.png into a folder; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"benchmark.{suffix}" for suffix in ("md", "csv", "png")]
    paths[0].write_text(text_report(results) + "\n", encoding="utf-8")
    paths[1].write_text(csv_text(results), encoding="utf-8")
    draw(results, paths[2])
    return paths


def csv_text(results: BenchmarkResults) -> str:
    """Format the measurements as CSV, one line per variant and cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for m in results.measurements:
        cell = m.cell
        numbers: list[object] = ["", "", "", "", ""]
        if not m.failure:
            numbers = [m.parameters, m.tokens_per_second, m.spread, m.speed, results.share_of_peak(m)]
        cache = (m.cache_predicted, m.cache_allocated) if cell.measure == "decode" else ("", "")
        flops = m.flops / m.tokens if m.flops else ""
        row = [m.variant, cell.measure, cell.context, cell.batch, *numbers, flops, m.memory or "", *cache, m.failure]
        writer.writerow(row)
    return out.getvalue()


def _table(results: BenchmarkResults, measurements: Sequence[Measurement], measure: str) -> str:
    header = ["", "context", "batch", "tokens/s", "spread", "speed", "of the peak", "MiB"]
    if measure == "decode":
        header += ["cache MiB", "predicted"]
    return markdown_table(header, [_row(results, m) for m in measurements if not m.failure])


def _row(results: BenchmarkResults, m: Measurement) -> list[str]:
    share = results.share_of_peak(m)
    row = [
        m.variant,
        f"{m.cell.context:,}",
        str(m.cell.batch),
        f"{m.tokens_per_second:,.0f}",
        f"±{m.spread:.0%}",
        "" if m.speed is None else f"{m.speed:.2f}x",
        "" if share is None else f"{share:.0%}",
        f"{m.memory / MIB:,.0f}",
    ]
    if m.cell.measure == "decode":
        row += [f"{m.cache_allocated / MIB:,.2f}", f"{m.cache_predicted / MIB:,.2f}"]
    return row


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, of which the first column is aligned on the left and the others on the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])] for row in [header, rule, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)
