"""Plots of a training: the training and validation losses above the learning rate; loss.png of a run."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from modular_gpt.training.metrics import Curves, Points, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT = "loss.png"
SMOOTHING_WINDOWS = 40  # the smooth curve averages windows of this fraction of all points
BEGINNING = 0.05  # fraction of the steps whose high losses may leave the picture, so that later ones are visible


def plot_losses(directory: Path, curves: Curves | None = None) -> Path:
    """Draw loss.png in a run directory; without ``curves``, from metrics.jsonl."""
    curves = Curves(read_metrics(directory)) if curves is None else curves
    figure = loss_figure(curves, title(directory, curves))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a run may be named with an emoji
        figure.savefig(directory / PLOT)
    return directory / PLOT


def loss_figure(curves: Curves, heading: str, size: tuple[float, float] = (8, 5.5)) -> "Figure":
    """The figure of some curves under a heading; size: width and height in inches."""
    from modular_gpt.training.displayed_figure import DisplayedFigure

    figure = DisplayedFigure(figsize=size, dpi=120, layout="constrained")
    losses, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3.5, 1])
    draw_losses(losses, curves.loss, curves.validation)
    losses.set_title(heading, fontsize=10, loc="left")
    if curves.learning_rate:
        rate.plot(*zip(*curves.learning_rate, strict=True), color="C2", linewidth=1.2)
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.grid(alpha=0.3)
    return figure


def draw_losses(axes: "Axes", training: Points, validation: Points) -> None:
    """Draw the training loss, as it is and smoothed, and the validation loss with its best value."""
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


def smoothed(values: Points) -> Points:
    """Means over a moving window, each at its middle; empty where there are too few points."""
    width = len(values) // SMOOTHING_WINDOWS
    if width < 2:
        return []
    windows = (values[start : start + width] for start in range(len(values) - width + 1))
    return [(window[width // 2][0], sum(value for _, value in window) / width) for window in windows]


def title(directory: Path, curves: Curves) -> str:
    """The heading of a run's plot: its name, with a $ escaped for matplotlib, and its best result."""
    name = directory.resolve().name.replace("$", r"\$")
    return name if curves.best is None else f"{name}\n{best_result(curves)}"


def best_result(curves: Curves) -> str:
    """A phrase with the best validation loss and the tokens trained on; empty without an evaluation."""
    best = curves.best
    if best is None:
        return ""
    bits = f" ({best['bits_per_byte']:.3f} bits per byte)" if "bits_per_byte" in best else ""
    return (
        f"best validation loss {best['validation_loss']:.4f}{bits} at step {best['step']:,.0f};"
        f" {curves.tokens:,.0f} tokens in all"
    )
