"""The result of a comparison: values and costs of every variant, differences with verdicts, and remarks."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from modular_gpt.comparison.budget import Cost
from modular_gpt.comparison.checks import load_checks
from modular_gpt.comparison.config import AUTO, BUDGETS, CompareConfig
from modular_gpt.comparison.curves import flips, mean_curve
from modular_gpt.comparison.decoding import DECODING, DecodingSpeed, load_decoding
from modular_gpt.comparison.diagnostics import Check
from modular_gpt.comparison.pages import pages_in
from modular_gpt.comparison.plan import Plan
from modular_gpt.comparison.search import TUNING, Search
from modular_gpt.comparison.statistics import BETTER, EQUIVALENT, FEWEST_SEEDS, WORSE, Difference, compare_to_baseline
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict

MARGIN = CompareConfig.margin  # in nats, also where another measure is compared
UNTUNED = "UNTUNED: one learning rate for all, so the order may be an artefact of that rate"


@dataclass(frozen=True)
class VariantResult:
    """The counted trials of a variant, and the rates that were tried for it.

    trials: results by seed, in ascending order
    values: the values by which variants are compared; lower is better
    tried: value of each learning rate on the seed that is not counted
    at_edge: whether the best rate is the lowest or the highest one
    """

    name: str
    learning_rate: float
    at_edge: bool
    trials: list[PlainDict]
    values: list[float]
    tried: dict[float, float]
    cost: Cost

    @property
    def mean(self) -> float:
        """The mean value over seeds; infinity if one diverged."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None for a single seed, or if a training diverged."""
        finite = len(self.values) > 1 and math.isfinite(self.mean)
        return statistics.stdev(self.values) if finite else None

    @property
    def diverged(self) -> int:
        """Number of trials without a finite loss."""
        return sum(trial["diverged"] is not None for trial in self.trials)

    @property
    def seconds(self) -> float:
        """Seconds of a training without its evaluations, at the median speed; NaN if none was measured."""
        speeds = [trial["tokens_per_second"] for trial in self.trials if trial["tokens_per_second"]]
        return self.cost.tokens / statistics.median(speeds) if speeds else math.nan


@dataclass(frozen=True)
class CompareResult:
    """The result of a comparison. ``print(result.table)`` shows it, ``save_report()`` writes it.

    differences: of every variant beside the baseline, by name
    pages: file names of the inspection pages of variants
    checks: probes of each variant's config
    """

    directory: Path
    plan: Plan
    variants: dict[str, VariantResult]
    differences: dict[str, Difference]
    trials: list[PlainDict]
    decoding: dict[str, list[DecodingSpeed]]
    pages: dict[str, str]
    checks: list[Check]

    @classmethod
    def of(cls, directory: Path, plan: Plan, search: Search) -> "CompareResult":
        """The result of those seeds that every variant has finished.

        Raises:
            ConfigError: there is no such seed.
        """
        results = search.results
        if plan.config.lr == AUTO and not all(search.tried(name) for name in plan.variants):
            raise ConfigError(f"no seed is finished in '{directory}': mgpt-compare resume={directory}")
        counted: dict[int, dict[str, PlainDict]] = {}
        for trial in search.counted():
            if trial.key in results:
                counted.setdefault(trial.pair, {})[trial.variant] = results[trial.key]
        whole = [trials for _, trials in sorted(counted.items()) if len(trials) == len(plan.variants)]
        if not whole:
            raise ConfigError(f"no seed is finished in '{directory}': mgpt-compare resume={directory}")
        variants = {name: _variant(name, [trials[name] for trials in whole], search) for name in plan.variants}
        values = {name: variant.values for name, variant in variants.items()}
        differences = {item.variant: item for item in compare_to_baseline(values, plan.config.margin)}
        decoding = load_decoding(directory / DECODING)
        pages, checks = pages_in(directory, plan.variants), load_checks(directory)
        return cls(directory, plan, variants, differences, list(results.values()), decoding, pages, checks)

    @property
    def learned_tasks(self) -> bool:
        """Whether diagnostic tasks were learned for this comparison."""
        return any(check.trained for check in self.checks)

    @property
    def n(self) -> int:
        """Number of seeds that count."""
        return len(self.variants[self.plan.baseline].values)

    @property
    def table(self) -> str:
        """The result as text."""
        from modular_gpt.comparison.text_report import terminal

        return terminal(self)

    def save_report(self) -> Path:
        """Write report.html, report.md and report.json into the directory; returns the path of the first."""
        from modular_gpt.comparison.html_report import page
        from modular_gpt.comparison.text_report import markdown

        write_text(self.directory / "report.md", markdown(self))
        write_text(self.directory / "report.json", json.dumps(self.plain(), indent=1) + "\n")
        write_text(self.directory / "report.html", page(self))
        return self.directory / "report.html"

    def satisfies(self, required: str | None) -> bool:
        """Whether the verdicts satisfy the setting ``require``."""
        verdicts = [difference.verdict for difference in self.differences.values()]
        if required == "not_worse":
            return WORSE not in verdicts and self.n >= FEWEST_SEEDS
        accepted = {"better": {BETTER}, "equivalent": {BETTER, EQUIVALENT}}.get(str(required))
        return accepted is None or any(verdict in accepted for verdict in verdicts)

    @property
    def title(self) -> str:
        """The conditions in a line: budget, tuning, seeds, baseline."""
        tuned = "learning rate tuned for each variant" if self.plan.config.lr == AUTO else UNTUNED
        budget = BUDGETS[str(self.plan.config.budget)]
        if self.plan.config.target is not None:
            budget = f"{budget} of {self.plan.config.target:g}"
        return f"{budget[0].upper()}{budget[1:]}; {tuned}; {seeds(self.n)}; baseline {self.plan.baseline}"

    @property
    def remarks(self) -> list[str]:
        """List the limits of the result: noise, edges, divergence, ranks that depend on the budget, and its cost."""
        probes = [f"Wrong: {one.variant}, {one.name}: {one.found}." for one in self.checks if one.passed is False]
        return [*probes, *self._noise(), *self._edges(), *self._diverged(), *self._other_budgets(), self._effort()]

    @property
    def detectable(self) -> float:
        """The largest of the minimum detectable differences; infinity if there is none."""
        return max(
            (item.detectable for item in self.differences.values() if math.isfinite(item.detectable)), default=math.inf
        )

    def _noise(self) -> list[str]:
        config, deviation = self.plan.config, self.variants[self.plan.baseline].deviation
        if self.n < FEWEST_SEEDS:
            return [f"{seeds(self.n)} cannot give a verdict: mgpt-compare resume={self.directory} seeds={FEWEST_SEEDS}"]
        unit = "nats" if config.target is None else "in ln(tokens)"
        noise = (
            ""
            if deviation is None
            else f"Seeds of {self.plan.baseline} differ by {deviation:.4f} (standard deviation). "
        )
        if not math.isfinite(self.detectable):
            return [f"{noise}No differences were measured, as in every pair a training diverged."]
        return [
            f"{noise}Minimum detectable difference: {self.detectable:.3f} {unit} (80% power);"
            f" equivalent: within {config.margin:g}."
        ]

    def _edges(self) -> list[str]:
        names = [name for name, variant in self.variants.items() if variant.at_edge]
        note = "is still the best at the edge of those tried, so a better one may lie beyond"
        return [f"Learning rate: that of {', '.join(names)} {note}."] if names else []

    def _diverged(self) -> list[str]:
        counts = {name: variant.diverged for name, variant in self.variants.items() if variant.diverged}
        return (
            [f"Diverged: {', '.join(f'{count} of {self.n} runs of {name}' for name, count in counts.items())}."]
            if counts
            else []
        )

    def _other_budgets(self) -> list[str]:
        curves = {name: mean_curve(variant.trials) for name, variant in self.variants.items()}
        costs = {name: variant.cost for name, variant in self.variants.items()}
        seconds = {name: variant.seconds for name, variant in self.variants.items()}
        return flips(curves, costs, seconds, MARGIN)

    def _effort(self) -> str:
        seconds = sum(trial["cpu_seconds"] for trial in self.trials)
        tuning = sum(trial["cpu_seconds"] for trial in self.trials if trial["pair"] == TUNING)
        versions = {json.dumps(trial["versions"], sort_keys=True) for trial in self.trials}
        mixed = " Trials were trained by different versions of the code." if len(versions) > 1 else ""
        share = f"{tuning / max(seconds, 1e-9):.0%} of them to tune learning rates"
        return f"{len(self.trials)} trainings, {seconds:.0f} CPU seconds, {share}.{mixed}"

    def plain(self) -> PlainDict:
        """The result as plain values, for report.json."""
        return finite(
            {
                "title": self.title,
                "remarks": self.remarks,
                "budget": self.plan.config.budget,
                "baseline": self.plan.baseline,
                "tuned": self.plan.config.lr == AUTO,
                "seeds": self.n,
                "margin": self.plan.config.margin,
                "minimum_detectable_difference": self.detectable,
                "variants": {
                    name: {
                        "values": variant.values,
                        "mean": variant.mean,
                        "learning_rate": variant.learning_rate,
                        "at_edge": variant.at_edge,
                        "tried": {f"{rate:g}": value for rate, value in variant.tried.items()},
                        "seconds": variant.seconds,
                        "diverged": variant.diverged,
                        **variant.cost.plain(),
                    }
                    for name, variant in self.variants.items()
                },
                "differences": {name: asdict(difference) for name, difference in self.differences.items()},
                "decoding": {name: [asdict(speed) for speed in speeds] for name, speeds in self.decoding.items()},
                "checks": [asdict(check) for check in self.checks],
                "command": self.plan.command,
                "environment": self.plan.environment,
            }
        )


def _variant(name: str, trials: Sequence[PlainDict], search: Search) -> VariantResult:
    tuned = search.plan.config.lr == AUTO
    return VariantResult(
        name,
        search.best_rate(name),
        search.at_edge(name),
        list(trials),
        [search.measure.value(trial) for trial in trials],
        {rate: search.measure.value(trial) for rate, trial in search.tried(name).items()} if tuned else {},
        search.plan.costs[name],
    )


def seeds(n: int) -> str:
    """A number of seeds as text."""
    return f"{n} seed" if n == 1 else f"{n} seeds"


def finite(values: Mapping[str, object]) -> PlainDict:
    """Plain values in which numbers that JSON cannot hold are null."""

    def clean(value: object) -> object:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, Mapping):
            return {name: clean(inner) for name, inner in value.items()}
        return [clean(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    return {name: clean(value) for name, value in values.items()}
