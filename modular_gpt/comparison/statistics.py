"""Paired statistics of a comparison: intervals, corrected p-values, equivalence, and verdicts.

Losses are a table of variants x seeds whose first row is the baseline. Every variant is compared with the baseline seed
by seed. The standard deviation of these differences is the larger of the variant's and the one pooled over the table,
with (k - 1)(n - 1) degrees of freedom; Holm's procedure corrects for the number of variants, and two one-sided tests
(TOST) decide whether a difference is within the margin. tests/comparison/test_statistics.py simulates the error rates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import mpmath
import numpy as np

LEVEL, POWER = 0.05, 0.8  # significance level of each test; chance of a verdict at the minimum detectable difference
FEWEST_SEEDS = 3  # for a verdict
MAX_SEEDS = 1000  # largest number of seeds to propose
TINY = 1e-12  # standard error of differences that are all equal

BETTER, WORSE, EQUIVALENT, UNDECIDED = "better", "worse", "equivalent", "cannot tell"
TOO_FEW = f"no verdict (n < {FEWEST_SEEDS})"


@dataclass(frozen=True)
class Difference:
    """The difference of a variant from the baseline, in the unit of the losses; below zero is better.

    mean, low, high: of the paired differences, with the 95% interval; infinite where a run diverged
    p: two-sided, Holm-corrected; p_equivalent: of a difference at least as large as the margin (TOST)
    detectable: the difference that this many seeds find in 80% of comparisons
    verdict: better, worse, equivalent, cannot tell, or no verdict; needed: number of seeds for a verdict, or None
    """

    variant: str
    n: int
    mean: float
    low: float
    high: float
    p: float
    p_equivalent: float
    detectable: float
    verdict: str
    needed: int | None

    @property
    def sentence(self) -> str:
        """The verdict, with the number of seeds that would decide."""
        if self.needed is None:
            return self.verdict
        count = f"about {self.needed}" if self.needed < MAX_SEEDS else f"more than {MAX_SEEDS}"
        return f"{self.verdict} (needs {count} seeds)"


@dataclass(frozen=True)
class Decision:
    """Verdicts of many tables at once: arrays (..., variants beside the baseline).

    mean, error: of the paired differences, and its standard error; df: degrees of freedom, a number
    better, worse, equivalent: the verdicts, at most one of them true
    """

    mean: np.ndarray
    error: np.ndarray
    df: int
    better: np.ndarray
    worse: np.ndarray
    equivalent: np.ndarray


def upper_tail(t: float, df: float) -> float:
    """The probability that Student's t with ``df`` degrees of freedom exceeds ``t``."""
    if math.isinf(t):
        return 0.0 if t > 0 else 1.0
    beyond = 0.5 * float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))
    return beyond if t >= 0 else 1 - beyond


@cache
def quantile(probability: float, df: float) -> float:
    """The value that Student's t with ``df`` degrees of freedom stays below with this probability (above one half)."""
    t, before = NormalDist().inv_cdf(probability), 0.0
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    while t - before > 1e-13 * t:  # Newton's method from the left, where the convex tail makes it rise to the root
        density = scale * (1 + t * t / df) ** (-(df + 1) / 2)
        before, t = t, t + (upper_tail(t, df) - (1 - probability)) / density
    return t


def decide(losses: np.ndarray, margin: float) -> Decision:
    """Verdicts on losses (..., k, n) of k variants, the baseline first, and n seeds; all losses are finite."""
    variants, n = losses.shape[-2:]
    differences = losses[..., 1:, :] - losses[..., :1, :]
    mean, df = differences.mean(-1), (variants - 1) * (n - 1)
    error = np.maximum(
        np.maximum(differences.std(-1, ddof=1), pooled_deviation(losses)[..., None]) / math.sqrt(n), TINY
    )
    different = holm_rejects(np.abs(mean) / error, df)
    equivalent = margin - np.abs(mean) > quantile(1 - LEVEL, df) * error
    decided = different & ~equivalent
    return Decision(mean, error, df, decided & (mean < 0), decided & (mean > 0), equivalent)


def pooled_deviation(losses: np.ndarray) -> np.ndarray:
    """Standard deviation (...) of a paired difference, from the residuals of the table variants x seeds."""
    variants, n = losses.shape[-2:]
    rows, columns = losses.mean(-1, keepdims=True), losses.mean(-2, keepdims=True)
    residuals = losses - rows - columns + losses.mean((-2, -1), keepdims=True)
    deviation: np.ndarray = np.sqrt(2 * (residuals**2).sum((-2, -1)) / ((variants - 1) * (n - 1)))
    return deviation


def holm_rejects(t: np.ndarray, df: int) -> np.ndarray:
    """Whether Holm's procedure rejects each of the hypotheses whose test statistics are |t| (..., m)."""
    m = t.shape[-1]
    order = np.argsort(-t, axis=-1)
    limits = np.array([quantile(1 - LEVEL / 2 / (m - place), df) for place in range(m)])
    rejected = np.logical_and.accumulate(np.take_along_axis(t, order, -1) > limits, axis=-1)
    out = np.empty_like(rejected)
    np.put_along_axis(out, order, rejected, -1)
    return out


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected by Holm's procedure."""
    corrected, highest = [1.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = highest
    return corrected


def compare_to_baseline(losses: Mapping[str, Sequence[float]], margin: float) -> list[Difference]:
    """The difference of every variant from the first one.

    losses: of each variant, one for each seed, in the same order; a run that diverged has the loss infinity
    """
    names = list(losses)
    table = np.array([losses[name] for name in names], float)
    n = table.shape[1]
    if n < FEWEST_SEEDS:
        return [_too_few(name, table[0], row) for name, row in zip(names[1:], table[1:], strict=True)]
    diverged = (~np.isfinite(table)).sum(1)
    finite = [row for row in range(1, len(names)) if not diverged[0] and not diverged[row]]
    found = {row: _diverged(names[row], n, int(diverged[row] - diverged[0])) for row in range(1, len(names))}
    if finite:
        decision = decide(table[[0, *finite]], margin)
        p = [
            2 * upper_tail(abs(mean) / error, decision.df)
            for mean, error in zip(decision.mean, decision.error, strict=True)
        ]
        # the p of a variant that diverged is 0: Holm's procedure rejects it first, and is the same for the others
        for place, (row, corrected) in enumerate(zip(finite, holm(p), strict=True)):
            found[row] = _difference(names[row], n, decision, place, corrected, margin)
    return [found[row] for row in range(1, len(names))]


def _difference(name: str, n: int, decision: Decision, place: int, p: float, margin: float) -> Difference:
    mean, error, df = float(decision.mean[place]), float(decision.error[place]), decision.df
    half = quantile(1 - LEVEL / 2, df) * error
    m = len(decision.mean)
    verdicts = {BETTER: decision.better, WORSE: decision.worse, EQUIVALENT: decision.equivalent}
    verdict = next((name for name, reached in verdicts.items() if reached[place]), UNDECIDED)
    needed = None
    if verdict == UNDECIDED:
        needed = seeds_needed(error * math.sqrt(n), max(abs(mean), margin), m, n)
    return Difference(
        name,
        n,
        mean,
        mean - half,
        mean + half,
        p,
        p_equivalent=upper_tail((margin - abs(mean)) / error, df),
        detectable=(quantile(1 - LEVEL / 2 / m, df) + quantile(POWER, df)) * error,
        verdict=verdict,
        needed=needed,
    )


def _too_few(name: str, base: np.ndarray, row: np.ndarray) -> Difference:
    mean = float((row - base).mean()) if np.isfinite([base, row]).all() else math.inf
    return Difference(name, len(base), mean, -math.inf, math.inf, 1.0, 1.0, math.inf, TOO_FEW, None)


def _diverged(name: str, n: int, more: int) -> Difference:
    """The difference of a variant of which runs diverged; more: number of its diverged runs beyond the baseline's."""
    verdict = WORSE if more > 0 else BETTER if more < 0 else UNDECIDED
    mean = math.copysign(math.inf, more) if more else math.nan
    return Difference(name, n, mean, mean, mean, 0.0 if more else 1.0, 1.0, math.inf, verdict, None)


def seeds_needed(deviation: float, difference: float, variants: int, at_least: int) -> int:
    """The number of seeds that finds a difference of this size with a chance of 80%, at most ``MAX_SEEDS``.

    deviation: standard deviation of a paired difference
    variants: number of variants besides the baseline
    at_least: the result is larger than this
    """

    def enough(n: int) -> bool:
        df = variants * (n - 1)
        return (quantile(1 - LEVEL / 2 / variants, df) + quantile(POWER, df)) * deviation / math.sqrt(n) <= difference

    low, high = at_least, at_least + 1
    while high < MAX_SEEDS and not enough(high):
        low, high = high, min(MAX_SEEDS, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
