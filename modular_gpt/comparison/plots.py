"""The plots of a report: differences, loss curves, learning rates, quality against cache, decoding speed."""

import math
from collections.abc import Mapping, Sequence

from modular_gpt.comparison.budget import CACHE_TOKENS
from modular_gpt.comparison.results import CompareResult
from modular_gpt.comparison.svg import COLOURS, Axis, Plot, Point

ROW = 34  # pixels of a variant in the plot of differences
FIRST = 0.1  # fraction of the training whose high losses may be outside the plot


def styles(names: Sequence[str]) -> dict[str, str]:
    """The class of each variant's colour."""
    return {name: f"c{place % len(COLOURS)}" for place, name in enumerate(names)}


def differences(result: CompareResult) -> str:
    """The interval of each difference, every seed, and the range of equivalence."""
    found = list(reversed(result.differences.values()))
    style, margin = styles(list(result.variants)), result.plan.config.margin
    finite = [item for item in found if math.isfinite(item.low) and math.isfinite(item.high)]
    ends = [end for item in finite for end in (item.low, item.high)]
    ends += [x for item in found for x in paired(result, item.variant)]
    reach = max([2 * margin, *(abs(end) for end in ends)]) * 1.06
    unit = "nats per token" if result.plan.config.target is None else "ln(tokens)"
    x = Axis(-reach, reach, f"difference from {result.plan.baseline}, {unit}; left is better")
    y = Axis(-0.6, len(found) - 0.4, names=tuple(item.variant for item in found))
    plot = Plot("Differences with 95% intervals", x, y, left=110, height=78 + ROW * len(found))
    plot.zone(-margin, margin, f"equivalent: within {margin:g}")
    plot.line([(0, -0.6), (0, len(found) - 0.4)], "zero", "no difference")
    for place, item in enumerate(found):
        for seed, value in enumerate(paired(result, item.variant), 1):
            plot.dot(value, place + 0.27, "seed", f"seed {seed}: {value:+.4f}", 2.2)
        if not math.isfinite(item.mean):
            plot.text(reach * 0.5, place, "diverged")
            continue
        if item in finite:
            plot.line([(item.low, place), (item.high, place)], f"{style[item.variant]} thick",
                      f"{item.low:+.4f} to {item.high:+.4f}")  # fmt: skip
        plot.dot(item.mean, place, style[item.variant], f"{item.variant}: {item.mean:+.4f}, {item.sentence}", 5)
    return plot.svg()


def paired(result: CompareResult, name: str) -> list[float]:
    """The differences from the baseline at the seeds with two finite losses."""
    base = result.variants[result.plan.baseline].values
    pairs = zip(result.variants[name].values, base, strict=True)
    return [value - other for value, other in pairs if math.isfinite(value - other)]


def loss_curves(result: CompareResult) -> str:
    """The mean training loss over tokens, and its range over seeds."""
    style, lines = styles(list(result.variants)), {}
    for name, variant in result.variants.items():
        by_step: dict[int, list[float]] = {}
        for trial in variant.trials:
            for step, loss in trial["losses"]:
                by_step.setdefault(step, []).append(loss)
        size = variant.trials[0]["tokens_per_step"]
        lines[name] = [
            (step * size, sum(losses) / len(losses), min(losses), max(losses))
            for step, losses in sorted(by_step.items())
        ]
    shown = [row for line in lines.values() for row in line[int(len(line) * FIRST) :]]
    if not shown:
        return ""
    low, high = min(row[2] for row in shown), max(row[3] for row in shown)
    last = max(row[0] for row in shown)
    plot = Plot(
        "Training loss: mean and range of seeds", Axis(0, last, "tokens"), Axis(low - 0.02, high, "nats per token")
    )
    for name, line in lines.items():
        visible = [row for row in line if row[1] <= high]
        plot.band([(row[0], row[2]) for row in visible], [(row[0], min(row[3], high)) for row in visible], style[name])
        plot.line([(row[0], row[1]) for row in visible], style[name], name)
    return plot.svg()


def learning_rates(result: CompareResult) -> str:
    """The value of every learning rate that was tried; "" if none was tuned."""
    tried = {name: variant.tried for name, variant in result.variants.items()}
    rates = [rate for values in tried.values() for rate in values]
    values = [value for found in tried.values() for value in found.values() if math.isfinite(value)]
    if not values:
        return ""
    top = min(max(values), min(values) + 1.0)
    label = "validation loss" if result.plan.config.target is None else "ln(tokens)"
    plot = Plot(
        "Learning rates tried on seed 0 (ring: chosen)",
        Axis(min(rates) * 0.8, max(rates) * 1.25, "learning rate", log=True),
        Axis(min(values) - 0.02, top + 0.02, label),
    )
    style = styles(list(tried))
    for name, found in tried.items():
        plot.line([(rate, value) for rate, value in found.items() if math.isfinite(value)], style[name], name)
        for rate, value in found.items():
            if math.isfinite(value):
                chosen = rate == result.variants[name].learning_rate
                plot.dot(
                    rate,
                    value,
                    f"{style[name]}{' ring' if chosen else ''}",
                    f"{name} at {rate:.2e}: {value:.4f}",
                    5 if chosen else 3,
                )
    return plot.svg()


def quality_and_cache(result: CompareResult) -> str:
    """The value of each variant against the bytes of its cache."""
    finite = {name: variant for name, variant in result.variants.items() if math.isfinite(variant.mean)}
    if not finite:
        return ""
    bytes_ = [max(1, variant.cost.cache_bytes) for variant in finite.values()]
    values = [value for variant in finite.values() for value in variant.values]
    pad = (max(values) - min(values)) * 0.12 + 0.005
    plot = Plot(
        "Quality and cache",
        Axis(min(bytes_) * 0.6, max(bytes_) * 2, f"cache bytes of {CACHE_TOKENS:,} tokens, bf16", log=True),
        Axis(
            min(values) - pad,
            max(values) + pad,
            "validation loss" if result.plan.config.target is None else "ln(tokens)",
        ),
    )
    style = styles(list(result.variants))
    for name, variant in finite.items():
        at = max(1, variant.cost.cache_bytes)
        plot.line([(at, min(variant.values)), (at, max(variant.values))], style[name], "range of seeds")
        plot.dot(at, variant.mean, style[name], f"{name}: {at:,} bytes, {variant.mean:.4f}", 5)
        plot.text(at, variant.mean, name)
    return plot.svg()


def decoding(result: CompareResult) -> str:
    """Tokens per second by tokens in the cache, with the bound by memory bandwidth if it explains the speed."""
    measured = result.decoding
    speeds = [speed for found in measured.values() for speed in found]
    if not speeds:
        return ""
    heights = [value for speed in speeds for value in (speed.measured, *([speed.bound] if speed.is_bound else []))]
    sizes = [speed.tokens for speed in speeds]
    plot = Plot(
        "Decoding speed (dashed: bound by memory)",
        Axis(min(sizes) * 0.9, max(sizes) * 1.1, "tokens in the cache", log=True),
        Axis(min(heights) * 0.8, max(heights) * 1.2, "tokens/s, one text", log=True),
    )
    style = styles(list(result.variants))
    for name, found in measured.items():
        plot.line([(speed.tokens, speed.measured) for speed in found], style[name], name)
        bound: Sequence[Point] = [(speed.tokens, speed.bound) for speed in found if speed.is_bound]
        plot.line(bound, f"{style[name]} dashed", f"{name}, bound by memory")
        for speed in found:
            plot.dot(
                speed.tokens, speed.measured, style[name], f"{name} at {speed.tokens}: {speed.measured:.0f} tokens/s", 3
            )
    return plot.svg()


def overlay(curves: Mapping[str, Sequence[Point]], title: str, label: str) -> str:
    """Curves of runs over tokens, one colour each; high losses at the beginning are outside the plot."""
    shown = [point for curve in curves.values() for point in curve[int(len(curve) * FIRST) :]]
    if not shown:
        return ""
    low, high = min(y for _, y in shown), max(y for _, y in shown)
    plot = Plot(title, Axis(0, max(x for x, _ in shown), "tokens"), Axis(low - 0.02, high + 0.02, label))
    for (name, curve), style in zip(curves.items(), styles(list(curves)).values(), strict=True):
        plot.line([point for point in curve if point[1] <= high], style, name)
    return plot.svg()
