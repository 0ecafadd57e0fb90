"""The tables of a report as rows of text: values with verdicts, and costs."""

import math
import shlex

from modular_gpt.comparison.budget import CACHE_TOKENS
from modular_gpt.comparison.diagnostics.results import TASK_HEAD, probe_rows, task_rows
from modular_gpt.comparison.results import CompareResult, VariantResult
from modular_gpt.comparison.statistics import Difference

Table = list[list[str]]  # the first row has the headings

LIMITS = (
    "These are small models trained briefly: another size, text or length of training may give another order.",
    "The learning rate is the only setting that is tuned; another optimizer or schedule may suit a variant better.",
    "Losses are those of the last step, on fixed windows of the validation text, without the seed that tunes rates.",
    "Verdicts are corrected for the number of variants here, not for other comparisons that were made before.",
)


def verdicts(result: CompareResult) -> Table:
    """Each variant with the verdict, its difference from the baseline, and its value."""
    target = result.plan.config.target is not None
    speed = ["speed-up"] if target else []
    value = "ln(tokens)" if target else "loss"
    rows = [["variant", "verdict", "difference", "95% interval", *speed, "p (Holm)", value, "sd"]]
    for name, variant in result.variants.items():
        deviation = "-" if variant.deviation is None else f"{variant.deviation:.4f}"
        rows.append([name, *difference_cells(result.differences.get(name), target), number(variant.mean), deviation])
    return rows


def difference_cells(difference: Difference | None, target: bool) -> list[str]:
    """The cells of a verdict and its difference; empty for the baseline."""
    if difference is None:
        return ["baseline", "", "", *([""] if target else []), ""]
    bounded = math.isfinite(difference.low) and math.isfinite(difference.high)
    interval = f"{difference.low:+.4f} .. {difference.high:+.4f}" if bounded else "-"
    speed = [f"{math.exp(-difference.mean):.2f}x" if math.isfinite(difference.mean) else "-"] if target else []
    p = "-" if not bounded else "<0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    mean = f"{difference.mean:+.4f}" if math.isfinite(difference.mean) else "diverged"
    return [difference.sentence, mean, interval, *speed, p]


def number(value: float) -> str:
    """A value with four digits after the point; infinity is a training that diverged."""
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def costs(result: CompareResult) -> Table:
    """Costs of every variant: its learning rate, and each resource that could be the budget."""
    cache = f"cache bytes at {CACHE_TOKENS // 1024}k"
    rows = [["variant", "learning rate", "parameters", "FLOPs/token", "tokens", "training FLOPs", "seconds", cache]]
    return [*rows, *(cost_row(variant) for variant in result.variants.values())]


def cost_row(variant: VariantResult) -> list[str]:
    """The costs of a variant."""
    cost = variant.cost
    active = "" if cost.active_parameters == cost.parameters else f" ({cost.active_parameters:,} active)"
    return [
        variant.name,
        f"{variant.learning_rate:.2e}" + (" (edge)" if variant.at_edge else ""),
        f"{cost.parameters:,}{active}",
        f"{cost.flops_per_token:,.0f}",
        f"{cost.tokens:,}",
        f"{cost.flops:.3g}",
        f"{variant.seconds:.1f}" if math.isfinite(variant.seconds) else "-",
        f"{cost.cache_bytes:,}",
    ]


def checks(result: CompareResult) -> Table:
    """Each probe with its result for every variant."""
    return [["probe", *result.variants], *probe_rows(result.checks, list(result.variants))]


def tasks(result: CompareResult) -> Table:
    """Each diagnostic task that small models learned, with the answer that follows from the architecture."""
    return [TASK_HEAD, *task_rows(result.checks)]


def reproduce(result: CompareResult) -> str:
    """The command that repeats the comparison; empty if it was started from Python."""
    return f"mgpt-compare {shlex.join(result.plan.command)}" if result.plan.command else ""
