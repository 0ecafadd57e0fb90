"""Check that the conditions of all variants are equal, without which a comparison is refused."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from modular_gpt.comparison.config import AUTO, CompareConfig
from modular_gpt.comparison.trial import text_of
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.optim import peak_learning_rate
from modular_gpt.runtime.device import check_precision, choose_device, choose_precision, prepare_device
from modular_gpt.training.compile import compiles
from modular_gpt.training.config import RunConfig

FEWEST, POINTS = 5, 40  # evaluations and points of a training curve

# Settings that have to be equal, and why.
EQUAL = {
    "data": "the texts differ",
    "tokenizer": "losses in nats per token are comparable with one tokenizer only",
    "vocab_size": "losses in nats per token are comparable with one vocabulary only",
    "model.context_length": "the windows that are validated differ",
    "trainer.eval_batches": "the windows that are validated differ",
    "trainer.order": "the order of the text differs",
    "trainer.device": "times and rounding differ",
    "trainer.precision": "times and rounding differ",
    "trainer.threads": "times differ",
    "trainer.compile": "times and rounding differ",
}
SEED = (
    "a swept seed is not a variant, as every variant is trained with several seeds: leave seed out, and give the number"
    " of seeds as seeds="
)
RATE = (
    "a swept learning rate is not a variant: leave optim.learning_rate out, and use lr=auto, which tunes it for each"
    " variant, or lr=<number>"
)


def value_at(run: PlainDict, path: str) -> object:
    """The value of the setting at a dotted path; None if it is absent."""
    group, _, name = path.partition(".")
    return run.get(group) if not name else run[group].get(name)


def check_equal(variants: Mapping[str, RunConfig]) -> None:
    """Raise a ConfigError for variants that differ in a condition, a seed or a learning rate, or stop early."""
    plain = {name: {**run.to_dict(), "vocab_size": run.vocab_size} for name, run in variants.items()}
    first, *others = plain
    for path, reason in EQUAL.items():
        for other in others:
            one, two = value_at(plain[first], path), value_at(plain[other], path)
            if one != two:
                raise ConfigError(
                    f"{first} and {other} cannot be compared, since {reason}: {path} is {one!r} and {two!r}"
                )
    if len({run.seed for run in variants.values()}) > 1:
        raise ConfigError(SEED)
    if len({run.optim.learning_rate for run in variants.values()}) > 1:
        raise ConfigError(RATE)
    for name, run in variants.items():
        if run.trainer.patience is not None:
            raise ConfigError(
                f"{name} has trainer.patience={run.trainer.patience}: only the last step of a finished schedule counts,"
                " so a comparison never stops early; leave it out"
            )
        for setting in ("epochs", "max_tokens", "max_time"):
            if (value := getattr(run.trainer, setting)) is not None:
                raise ConfigError(
                    f"{name} has trainer.{setting}={value}: a comparison makes budgets equal by the number of steps;"
                    " give trainer.max_steps instead"
                )
        if run.resume is not None or run.lora.rank is not None:
            raise ConfigError(f"{name} resumes a run or trains adapters, which a comparison cannot do; leave that out")


def resolved(variants: Mapping[str, RunConfig], config: CompareConfig) -> dict[str, PlainDict]:
    """The variants as plain settings of trials: with one precision, number of threads and decision to compile.

    Initial weights are drawn by name, so that variants start equal where they have the same parameters.
    variants: accepted by ``check_equal``
    """
    runs = {name: copy.deepcopy(run) for name, run in variants.items()}
    first = next(iter(runs.values()))
    device = choose_device(first.trainer.device)
    prepare_device(1 if config.jobs > 1 else first.trainer.threads)
    threads = torch.get_num_threads()
    precisions = {choose_precision(str(run.trainer.precision), device, run.model.d_model)[0] for run in runs.values()}
    precision = precisions.pop() if len(precisions) == 1 else "float32"  # widths differ
    check_precision(precision, device)
    compile = all(decides_to_compile(run, device) for run in runs.values())
    plain = RunConfig(parallel="none")  # a trial is one process and writes no files
    for run in runs.values():
        settings = run.trainer
        if settings.device != AUTO:
            settings.device = str(device)
        settings.precision, settings.threads, settings.compile = precision, threads, compile
        settings.sample_tokens, settings.final_evaluation = 0, False
        settings.eval_interval = min(settings.eval_interval, max(1, settings.max_steps // FEWEST))
        settings.log_interval = max(1, settings.max_steps // POINTS)
        run.model = replace(run.model, init_by_name=True)
        run.name, run.runs, run.logger, run.parallel = "trial", "runs", plain.logger, plain.parallel
    return {name: run.to_dict() for name, run in runs.items()}


def decides_to_compile(run: RunConfig, device: torch.device) -> bool:
    """Whether a training of this variant alone would be compiled."""
    return compiles(run.trainer, run.model_config(text_of(run)[1]), device, 1)[0]


def base_rates(runs: Mapping[str, PlainDict], lr: str | float) -> dict[str, float]:
    """The learning rate of each variant from which the search starts, or which it trains with."""
    rates = {}
    for name, run in runs.items():
        config = RunConfig.from_dict(run)
        rates[name] = peak_learning_rate(config.optim, config.model.d_model)
    if lr == AUTO:
        return rates
    shared = next(iter(rates.values())) if isinstance(lr, str) else lr
    return dict.fromkeys(rates, shared)


def check_trials(results: Iterable[PlainDict]) -> None:
    """Raise a ConfigError if trials ran under different conditions."""
    seen: dict[str, PlainDict] = {}
    for result in results:
        for name, value in result["conditions"].items():
            before = seen.setdefault(name, {"value": value, "variant": result["variant"]})
            if before["value"] != value:
                raise ConfigError(
                    f"trials ran under different conditions, so that they cannot be compared: {name} is"
                    f" {before['value']!r} for {before['variant']} and {value!r} for {result['variant']};"
                    " start a new comparison"
                )
