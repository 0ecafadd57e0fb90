"""Runs probes and quick diagnostics on variants: ``mgpt-compare --quick``."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from modular_gpt.comparison.diagnostics.probes import PROBES
from modular_gpt.comparison.diagnostics.results import Check, QuickResult
from modular_gpt.comparison.diagnostics.tasks import Task, recall, staircase
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentLike
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig

TOKENS = 1024  # of the cache whose bytes are listed

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
    """The config of a variant; an attention stands in an otherwise default model."""
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
    """The bytes that the config predicts, and that a cache has."""
    begun = time.process_time()
    predicted = config.cache_bytes(1, TOKENS)
    allocated = GPTModel(config).new_cache(1, TOKENS).nbytes()
    title = f"cache of {TOKENS:,} tokens"
    return Check(
        name, title, f"{allocated:,} B", f"{predicted:,} B", allocated == predicted, time.process_time() - begun
    )


def learned(name: str, config: GPTConfig) -> Iterator[Check]:
    """Train small models with the attention and position of the first layer on the tasks."""
    for task in tasks_of(config):
        yield checked(name, task)


def tasks_of(config: GPTConfig) -> list[Task]:
    """The tasks of the quick diagnostics."""
    layer = config.given_layers[0]
    found = [staircase(layer.attention, pos=layer.pos), recall(layer.attention, quick=True, pos=layer.pos)]
    return [task for task in found if task is not None]


def checked(name: str, task: Task) -> Check:
    """Train the model of a task and compare its accuracy with the expected one."""
    result = task.learn()
    return Check(name, task.name, f"{result.accuracy:.3f}", task.expected, task.right(result.accuracy), result.seconds)
