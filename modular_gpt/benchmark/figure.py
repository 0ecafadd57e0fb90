"""The plot of a benchmark: speed, memory and cache by context length, with a line per variant."""

from collections.abc import Callable
from pathlib import Path

from modular_gpt.benchmark.results import BenchmarkResults, Measurement
from modular_gpt.runtime.timing import MIB

PANELS: tuple[tuple[str, str, Callable[[Measurement], float]], ...] = (
    ("train", "training, tokens/s", lambda m: m.tokens_per_second),
    ("train", "memory of a training step, MiB", lambda m: m.memory / MIB),
    ("prefill", "prefill, tokens/s", lambda m: m.tokens_per_second),
    ("decode", "decoding, tokens/s", lambda m: m.tokens_per_second),
    ("decode", "cache, MiB", lambda m: m.cache_allocated / MIB),
)


def draw(results: BenchmarkResults, path: Path) -> None:
    """Write a PNG file with a panel per quantity, for the largest batch size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    succeeded = {m.cell.measure for m in results.measurements if not m.failure}
    panels = [panel for panel in PANELS if panel[0] in succeeded]
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    batch = max(m.cell.batch for m in results.measurements)
    for axes, (measure, title, value) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        contexts = set()
        for name in results.variants:
            line = [m for m in results.of(name, measure) if m.cell.batch == batch]
            axes.plot([m.cell.context for m in line], [value(m) for m in line], "o-", markersize=4, label=name)
            contexts |= {m.cell.context for m in line}
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted(contexts), [f"{context:,}" for context in sorted(contexts)])
        axes.set_xlabel(f"context, tokens; batch {batch}")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
