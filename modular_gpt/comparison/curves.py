"""Mean validation curves, and pairs of variants whose order depends on the budget."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from modular_gpt.comparison.budget import Cost
from modular_gpt.core.plain_types import PlainDict

Points = list[tuple[float, float]]


def mean_curve(trials: Sequence[PlainDict]) -> Points:
    """The mean validation loss over seeds, as (fraction of the training, loss); empty if a training diverged."""
    if any(trial["loss"] is None for trial in trials):
        return []
    steps = trials[0]["steps"]
    by_step: dict[int, list[float]] = {}
    for trial in trials:
        for step, loss in trial["validations"]:
            by_step.setdefault(step, []).append(loss)
    return [(step / steps, math.fsum(losses) / len(losses)) for step, losses in sorted(by_step.items()) if losses]


def interpolated(curve: Points, at: float) -> float | None:
    """The loss at a fraction of the training; None before the first evaluation."""
    for (left, low), (right, high) in pairwise(curve):
        if left <= at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return curve[-1][1] if curve and at >= curve[-1][0] else None


def flips(
    curves: Mapping[str, Points], costs: Mapping[str, Cost], seconds: Mapping[str, float], margin: float
) -> list[str]:
    """A sentence for each other budget under which pairs of variants change places.

    Losses at an equal amount are read from the curves at the smallest total, where longer schedules are not finished.

    margin: smallest difference of two losses, both now and under the other budget
    """
    usable = {name: curve for name, curve in curves.items() if curve}
    amounts = {
        "tokens": {name: float(costs[name].tokens) for name in usable},
        "FLOPs": {name: costs[name].flops for name in usable},
        "time": {name: seconds[name] for name in usable},
    }
    sentences = []
    for resource, total in amounts.items():
        if not total or not all(math.isfinite(amount) for amount in total.values()):
            continue
        smallest = min(total.values())
        losses = {name: interpolated(curve, smallest / total[name]) for name, curve in usable.items()}
        pairs = [pair for pair in combinations(usable, 2) if changes_order(pair, usable, losses, margin)]
        if pairs and max(total.values()) / smallest > 1.02:
            listed = ", ".join(f"{one} and {other}" for one, other in pairs)
            sentences.append(
                f"Under equal {resource} these would change places (read from unfinished curves): {listed}."
            )
    return sentences


def changes_order(
    pair: tuple[str, str], curves: Mapping[str, Points], losses: Mapping[str, float | None], margin: float
) -> bool:
    """Whether ``losses`` and the last losses order two variants differently, each by more than the margin."""
    one, other = (losses[name] for name in pair)
    if one is None or other is None:
        return False
    now, then = curves[pair[0]][-1][1] - curves[pair[1]][-1][1], one - other
    return now * then < 0 and min(abs(now), abs(then)) > margin
