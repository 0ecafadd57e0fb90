"""Run probes and tasks on variants, for ``mgpt-compare --quick`` and for reports with ``diagnostics=learned``."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from modular_gpt.comparison.diagnostics.probes import PROBES
from modular_gpt.comparison.diagnostics.results import Check, QuickResult
from modular_gpt.comparison.diagnostics.tasks import (
    CONTEXT,
    LONG,
    RISE,
    Task,
    beyond_the_trained_length,
    capacity,
    flat_beyond,
    recall,
    staircase,
)
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentLike
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig

TOKENS = 1024  # tokens of the cache whose bytes are listed

Variant = GPTConfig | ComponentLike
Say = Callable[[str], None]


def run(variants: Mapping[str, Variant] | Sequence[str], say: Say = lambda line: None) -> QuickResult:
    """Probe variants and let small models of them learn two tasks; ``print`` the result.

    Probes and cache bytes are measured on each variant's config; tasks are learned by models of one layer with its
    attention and position.

    Args:
        variants: names of attentions, or by name a GPTConfig, or the settings of an attention
        say: called with a line before each variant

    Raises:
        ConfigError: there is no variant, or one is unknown.
    """
    if isinstance(variants, str) or not variants:
        raise ConfigError(f"diagnostics take names of attentions or a mapping of variants, got {variants!r}")
    given = variants if isinstance(variants, Mapping) else {name: name for name in variants}
    configs = {name: config_of(variant) for name, variant in given.items()}
    checks: list[Check] = []
    for name, config in configs.items():
        say(f"{name}: probes and two tasks")
        checks += probed(name, config)
        checks.append(cache_bytes(name, config))
        checks += learned(name, config)
    return QuickResult(checks)


def config_of(variant: Variant) -> GPTConfig:
    """The config of a variant; for an attention, that of a default model with this attention."""
    return variant if isinstance(variant, GPTConfig) else GPTConfig(attention=variant)


def probed(name: str, config: GPTConfig) -> Iterator[Check]:
    """The results of all probes on a new model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPTModel(config)
        for probe, function in PROBES.items():
            begun = time.process_time()
            answer = function(model)
            seconds = time.process_time() - begun
            if answer is None:
                yield Check(name, probe, "-", "", None, seconds)
            else:
                yield Check(name, probe, answer.found, answer.expected, answer.passed, seconds)


def cache_bytes(name: str, config: GPTConfig) -> Check:
    """Compare the bytes of a cache with those that the config predicts."""
    begun = time.process_time()
    predicted = config.cache_bytes(1, TOKENS)
    allocated = GPTModel(config).new_cache(1, TOKENS).nbytes()
    title = f"cache of {TOKENS:,} tokens"
    return Check(
        name, title, f"{allocated:,} B", f"{predicted:,} B", allocated == predicted, time.process_time() - begun
    )


def learned(name: str, config: GPTConfig) -> Iterator[Check]:
    """Train small models with the attention and position of the first layer on the tasks of ``--quick``."""
    for task in tasks_of(config):
        yield checked(name, task)


def tasks_of(config: GPTConfig) -> list[Task]:
    """The tasks of ``--quick``."""
    layer = config.given_layers[0]
    found = [staircase(layer.attention, pos=layer.pos), recall(layer.attention, quick=True, pos=layer.pos)]
    return [task for task in found if task is not None]


def diagnosed(name: str, config: GPTConfig) -> Iterator[Check]:
    """Train small models with the attention and position of the first layer on D1, D2, D4 and D5, for a report."""
    layer = config.given_layers[0]
    attention, pos = layer.attention, layer.pos
    found = [staircase(attention, layers, pos=pos) for layers in (1, 2)]
    for task in [*found, recall(attention, pos=pos), capacity(attention, pos=pos)]:
        if task is not None:
            yield checked(name, task)
    longer = longer_rows(name, attention, pos)
    if longer is not None:
        yield longer


def checked(name: str, task: Task) -> Check:
    """Train the model of a task and compare its accuracy with the expected one."""
    result = task.learn()
    passed = task.right(result.accuracy)
    return Check(name, task.name, f"{result.accuracy:.3f}", task.expected, passed, result.seconds, trained=True)


def longer_rows(name: str, attention: ComponentLike, pos: ComponentLike) -> Check | None:
    """D5: the rise of the loss in rows beyond the trained length; None if positions do not reach that far."""
    flat = flat_beyond(attention, pos=pos)
    if flat is None:
        return None
    found = beyond_the_trained_length(attention, (CONTEXT, LONG), pos=pos)
    title = f"D5 rise of the loss from {CONTEXT} to {LONG} tokens"
    expected, passed = (f"at most {RISE:.3f}", found.rise <= RISE) if flat else ("", None)
    return Check(name, title, f"{found.rise:+.3f}", expected, passed, found.seconds, trained=True)
