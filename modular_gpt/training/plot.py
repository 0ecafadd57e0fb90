"""A picture of a run: how its losses fell, and the learning rate that they fell under."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from modular_gpt.training.recorder import Entry, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT = "loss.png"
SMOOTH = 40  # the mean of one in so many entries is drawn over them
BEGINNING = 0.05  # share of the steps whose losses may run out of the picture, or the rest would be flat

Points = list[tuple[float, float]]


def plot_losses(directory: Path) -> Path:
    """Draw loss.png from metrics.jsonl: the losses of training and validation, and below them the learning rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_metrics(directory)
    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3.5, 1])
    draw_losses(losses, points(entries, "loss"), points(entries, "validation_loss"))
    losses.set_title(title(directory, entries), fontsize=10, loc="left")
    if rates := points(entries, "learning_rate"):
        rate.plot(*zip(*rates, strict=True), color="C2", linewidth=1.2)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.grid(alpha=0.3)
    figure.savefig(directory / PLOT)
    return directory / PLOT


def draw_losses(axes: "Axes", training: Points, validation: Points) -> None:
    """The training loss as it was and smoothed, and the validation loss with its best value."""
    if training:
        smooth = smoothed(training)
        color, label = ("0.8", None) if smooth else ("0.5", "training")
        axes.plot(*zip(*training, strict=True), color=color, linewidth=0.9, label=label)
        if smooth:
            axes.plot(*zip(*smooth, strict=True), color="0.35", linewidth=1.4, label="training, smoothed")
    if validation:
        axes.plot(*zip(*validation, strict=True), color="C0", marker="o", markersize=4, label="validation")
        best = min(validation, key=lambda point: point[1])
        axes.annotate(f"{best[1]:.3f}", best, textcoords="offset points", xytext=(0, 8), ha="center", color="C0")
    losses = training + validation
    if losses:
        last = max(step for step, _ in losses)
        lowest = min(loss for _, loss in losses)
        highest = max(loss for step, loss in losses if step > BEGINNING * last)
        margin = 0.12 * (highest - lowest) or 0.1
        axes.set_ylim(lowest - margin, highest + margin)
        axes.legend()
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)


def points(entries: list[Entry], name: str) -> Points:
    """(step, value) of a figure, where an entry has it and it is finite."""
    return [(entry["step"], entry[name]) for entry in entries if math.isfinite(entry.get(name, math.nan))]


def smoothed(values: Points) -> Points:
    """Means over a moving window, each at its middle; nothing where there are too few for that."""
    width = len(values) // SMOOTH
    if width < 2:
        return []
    windows = (values[start : start + width] for start in range(len(values) - width + 1))
    return [(window[width // 2][0], sum(value for _, value in window) / width) for window in windows]


def title(directory: Path, entries: list[Entry]) -> str:
    """The run and its best result."""
    evaluations = [entry for entry in entries if "validation_loss" in entry]
    if not evaluations:
        return directory.resolve().name
    best = min(evaluations, key=lambda entry: entry["validation_loss"])
    tokens = max((entry["tokens"] for entry in entries if "tokens" in entry), default=0)
    result = f"best validation loss {best['validation_loss']:.4f} ({best['bits_per_byte']:.3f} bits per byte)"
    return f"{directory.resolve().name}\n{result} at step {best['step']:,.0f}; {tokens:,.0f} tokens in all"
