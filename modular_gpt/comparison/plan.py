"""The plan of a comparison: its variants with equal budgets and conditions, in plan.json."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from modular_gpt.comparison.budget import Cost, cost, match_parameters, tokens_per_step, with_steps
from modular_gpt.comparison.conditions import base_rates, check_equal, resolved
from modular_gpt.comparison.config import CompareConfig
from modular_gpt.comparison.pilot import step_seconds
from modular_gpt.comparison.trial import config_key, text_of
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.validation import from_mapping
from modular_gpt.runtime.environment import environment
from modular_gpt.training.config import RunConfig

PLAN = "plan.json"
PLAN_FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The settings and conditions that the trials of a comparison depend on.

    variants: RunConfigs as plain values, by name; the first is the baseline
    rates: learning rates from which the search starts, or which are used
    costs: costs of each variant; vocab_size: that of all variants
    data: fingerprints of the text and the tokenizer
    command: arguments that repeat the comparison; empty where it was started from Python
    """

    config: CompareConfig
    variants: dict[str, PlainDict]
    rates: dict[str, float]
    costs: dict[str, Cost]
    vocab_size: int
    data: PlainDict
    environment: PlainDict
    command: list[str]

    @property
    def baseline(self) -> str:
        """The name of the variant that the others are compared with."""
        return next(iter(self.variants))

    @property
    def others(self) -> list[str]:
        """The names of the variants beside the baseline."""
        return list(self.variants)[1:]

    @property
    def threads(self) -> int:
        """The number of CPU threads of every trial."""
        return int(self.variants[self.baseline]["trainer"]["threads"])

    def copies(self) -> dict[str, int]:
        """The number of equal variants before each one."""
        seen: dict[str, int] = {}
        copies = {}
        for name, run in self.variants.items():
            key = config_key(run)
            copies[name] = seen.get(key, 0)
            seen[key] = copies[name] + 1
        return copies

    def save(self, directory: Path) -> None:
        """Write plan.json."""
        values = {"format": PLAN_FORMAT, **asdict(self)}
        write_text(directory / PLAN, json.dumps(values, indent=1))

    @classmethod
    def load(cls, directory: Path) -> "Plan":
        """Read the file of ``save``.

        Raises:
            CheckpointError: there is no comparison, or its plan is damaged or of another version.
        """
        try:
            values = load_json_object(directory / PLAN, error=CheckpointError, remedy="start a new comparison")
        except FileNotFoundError:
            raise CheckpointError(f"'{directory}' holds no comparison: it has no {PLAN}") from None
        if values.pop("format", None) != PLAN_FORMAT:
            raise CheckpointError(f"'{directory / PLAN}' was written by another version: start a new comparison")
        config = replace(from_mapping(CompareConfig, values.pop("config"), "compare"), resume=str(directory))
        costs = {name: from_mapping(Cost, value, "costs") for name, value in values.pop("costs").items()}
        return from_mapping(cls, {**values, "config": config, "costs": costs}, PLAN)

    def check_data(self) -> None:
        """Raise a ConfigError if the text is not the one that earlier trials were trained on."""
        now = text_of(RunConfig.from_dict(self.variants[self.baseline]))[0].identity
        changed = [name for name, fingerprint in now.items() if self.data.get(name) != fingerprint]
        if changed:
            raise ConfigError(
                f"the {changed[0]} is not the one of the finished trials, so that new ones could not be compared with"
                " them: restore it, or start a new comparison"
            )


def make_plan(variants: Mapping[str, RunConfig], config: CompareConfig, command: Sequence[str] = ()) -> Plan:
    """The plan of a new comparison.

    Raises:
        ConfigError: there is nothing to compare, conditions differ, or budgets cannot be made equal.
    """
    config.check_budget()
    if len(variants) < 2:
        raise ConfigError(
            "nothing to compare: give a setting several values, such as attention=mha,gqa; the first is the baseline"
        )
    check_equal(variants)
    data, tokenizer = text_of(next(iter(variants.values())))
    runs = resolved(variants, config)
    first = next(iter(variants.values()))
    vocab_size = tokenizer.vocab_size if first.vocab_size is None else first.vocab_size
    before = {name: config_key(run) for name, run in runs.items()}
    runs = with_equal_budgets(runs, config, vocab_size)
    check_still_different(before, runs)
    return Plan(
        config=config,
        variants=runs,
        rates=base_rates(runs, config.lr),
        costs={name: cost(run, vocab_size) for name, run in runs.items()},
        vocab_size=vocab_size,
        data=data.identity,
        environment=environment(),
        command=list(command),
    )


def with_equal_budgets(runs: dict[str, PlainDict], config: CompareConfig, vocab_size: int) -> dict[str, PlainDict]:
    """The variants with the ffn width or the number of steps that makes the budget equal."""
    baseline, *others = runs
    base = runs[baseline]
    out = copy.deepcopy(runs)
    if config.budget == "params":
        wanted = cost(base, vocab_size).parameters
        out = {baseline: base, **{name: match_parameters(name, runs[name], wanted, vocab_size) for name in others}}
    steps = base["trainer"]["max_steps"]
    if config.budget == "time":
        seconds = step_seconds(runs)
        factors = {name: seconds[baseline] / seconds[name] for name in runs}
    elif config.budget == "flops":
        flops = {name: cost(run, vocab_size).flops_per_token * tokens_per_step(run) for name, run in runs.items()}
        factors = {name: flops[baseline] / flops[name] for name in runs}
    else:
        factors = {name: tokens_per_step(base) / tokens_per_step(run) for name, run in runs.items()}
    resource = {"time": "time", "flops": "FLOPs"}.get(str(config.budget), "tokens")
    return {name: with_steps(name, run, steps * factors[name], resource) for name, run in out.items()}


def check_still_different(before: Mapping[str, str], runs: Mapping[str, PlainDict]) -> None:
    """Raise a ConfigError for variants that differed only in settings that the budget has made equal."""
    after: dict[str, str] = {}
    for name, run in runs.items():
        other = after.setdefault(config_key(run), name)
        if before[other] != before[name]:
            raise ConfigError(
                f"{other} and {name} differ only in settings that the budget makes equal: use another budget"
            )
