"""Error rates of the verdicts by simulation, and the formulas against published values."""

import math

import numpy as np
import pytest

from modular_gpt.comparison.statistics import (
    Decision,
    compare_to_baseline,
    decide,
    holm,
    holm_rejects,
    quantile,
    seeds_needed,
    upper_tail,
)

VARIANTS, REPEATS = 4, 10000  # variants beside the baseline; simulated comparisons
DEVIATION = 0.0212  # of a run; paired differences then have .03, as measured with small models
MARGIN = 0.02


def simulated(n: int, effect: float = 0.0, noisier: float = 1.0) -> Decision:
    """Verdicts on simulated losses; effect: of the first variant; noisier: factor of the last variant's deviation."""
    random = np.random.default_rng(n)
    deviations = np.full((VARIANTS + 1, 1), DEVIATION)
    deviations[-1] *= noisier
    seeds = random.normal(0, 0.01, (REPEATS, 1, n))  # shared by all variants at a seed
    losses = seeds + deviations * random.normal(size=(REPEATS, VARIANTS + 1, n))
    losses[:, 1] += effect
    return decide(losses, MARGIN)


def detectable(n: int) -> float:
    """Median of the minimum detectable differences reported by comparisons without effects."""
    decision = simulated(n)
    factor = quantile(1 - 0.05 / 2 / VARIANTS, decision.df) + quantile(0.8, decision.df)
    return float(factor * np.median(decision.error))


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize(("noisier", "allowed"), [(1.0, 0.05), (3.0, 0.06)])
def test_false_alarms_are_rare(n: int, noisier: float, allowed: float) -> None:
    decision = simulated(n, noisier=noisier)
    assert (decision.better | decision.worse).any(1).mean() <= allowed


@pytest.mark.parametrize(("n", "power"), [(3, 0.85), (5, 0.90), (10, 0.90)])
def test_differences_of_one_and_a_half_times_the_detectable_difference_are_found(n: int, power: float) -> None:
    decision = simulated(n, effect=1.5 * detectable(n))
    assert decision.worse[:, 0].mean() >= power
    assert decision.better[:, 0].mean() < 0.001


def test_equal_variants_are_rarely_called_equivalent_when_they_are_not() -> None:
    decision = simulated(10, effect=MARGIN)  # on the margin of equivalence
    assert decision.equivalent[:, 0].mean() <= 0.05


def test_little_noise_makes_equal_variants_equivalent() -> None:
    random = np.random.default_rng(0)
    decision = decide(random.normal(0, 0.004, (REPEATS, VARIANTS + 1, 5)), MARGIN)
    assert decision.equivalent.mean() > 0.95


def test_at_most_one_verdict() -> None:
    decision = simulated(5, effect=0.05)
    assert (decision.better.astype(int) + decision.worse + decision.equivalent).max() == 1


@pytest.mark.parametrize(  # tables of Student's t
    ("probability", "df", "value"),
    [(0.975, 1, 12.7062), (0.975, 4, 2.77645), (0.95, 10, 1.81246), (0.995, 30, 2.75000), (0.8, 8, 0.88889)],
)
def test_quantiles_equal_the_tables(probability: float, df: int, value: float) -> None:
    assert quantile(probability, df) == pytest.approx(value, abs=1e-4)
    assert upper_tail(quantile(probability, df), df) == pytest.approx(1 - probability, rel=1e-9)


def test_quantiles_equal_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    for df in (1, 2, 7.5, 40, 1000):
        for probability in (0.6, 0.9, 0.975, 0.9999):
            assert quantile(probability, df) == pytest.approx(stats.t.ppf(probability, df), rel=1e-9)


def test_holm_correction_by_example() -> None:
    """Holm (1979): the smallest p is multiplied by the number of hypotheses, the next by one less, and so on."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_rejections_agree_with_the_corrected_values() -> None:
    random = np.random.default_rng(1)
    for t in np.abs(random.normal(0, 2.5, (50, 4))):
        p = [2 * upper_tail(float(value), 12) for value in t]
        assert holm_rejects(t, 12).tolist() == [value < 0.05 for value in holm(p)]


def table(*rows: list[float]) -> dict[str, list[float]]:
    return {name: row for name, row in zip("abcd", rows, strict=False)}


def noise(n: int, shift: float = 0.0, seed: int = 0) -> list[float]:
    return (2 + shift + 0.01 * np.random.default_rng(seed).normal(size=n)).tolist()


def test_a_paired_difference_by_hand() -> None:
    """With two variants the pooled deviation is that of the differences, and the interval is the textbook formula."""
    (found,) = compare_to_baseline(table([2.0, 2.1, 2.2], [2.1, 2.3, 2.2]), MARGIN)
    differences = np.array([0.1, 0.2, 0.0])
    half = 4.30265 * differences.std(ddof=1) / math.sqrt(3)
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-4)
    assert found.verdict == "cannot tell" and found.needed is not None and found.needed > 3


def test_verdicts() -> None:
    better, worse, same = compare_to_baseline(
        table(noise(5), noise(5, -0.2, 1), noise(5, 0.2, 2), [value + 1e-4 for value in noise(5)]), MARGIN
    )
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert same.verdict in ("equivalent", "cannot tell")


def test_two_seeds_give_no_verdict() -> None:
    (found,) = compare_to_baseline(table(noise(2), noise(2, 5.0)), MARGIN)
    assert found.verdict == "no verdict (n < 3)"


def test_a_diverged_run_is_worse_and_does_not_hide_the_others() -> None:
    diverged, worse = compare_to_baseline(table(noise(5), [*noise(4), math.inf], noise(5, 0.3, 2)), MARGIN)
    assert diverged.verdict == "worse" and math.isinf(diverged.mean)
    assert worse.verdict == "worse" and math.isfinite(worse.high)


def test_a_diverged_baseline_is_worse() -> None:
    (found,) = compare_to_baseline(table([math.inf, *noise(4)], noise(5)), MARGIN)
    assert found.verdict == "better"
    (found,) = compare_to_baseline(table([math.inf, *noise(4)], [*noise(4), math.inf]), MARGIN)
    assert found.verdict == "cannot tell"


def test_equal_numbers_are_equivalent() -> None:
    (found,) = compare_to_baseline(table(noise(3), noise(3)), MARGIN)
    assert found.verdict == "equivalent" and found.mean == 0


def test_smaller_differences_need_more_seeds() -> None:
    found = [seeds_needed(0.03, difference, 4, 3) for difference in (0.1, 0.05, 0.02)]
    assert found == sorted(found) and found[0] < found[-1] < 1000


def test_the_needed_number_of_seeds_finds_the_difference() -> None:
    n = seeds_needed(DEVIATION * math.sqrt(2), 0.05, VARIANTS, 3)
    # below 0.8, since the larger of two deviations is used
    assert 0.7 <= simulated(n, effect=0.05).worse[:, 0].mean() <= 0.9
