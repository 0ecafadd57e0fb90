"""Budgets: variants get equal parameters, FLOPs or tokens by the width of their ffn and their number of steps."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from json import dumps, loads

import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.materialize import meta_model
from modular_gpt.training.config import RunConfig
from modular_gpt.training.estimate import count_flops

TOLERANCE = 0.01  # relative difference from the baseline's budget
CACHE_TOKENS = 8192  # for the column of cache bytes
WIDEST = 2**24


@dataclass(frozen=True)
class Cost:
    """Costs of a variant.

    flops_per_token: FLOPs of the forward and backward pass per token, without keys outside windows or after the query
    tokens: number of tokens of the training
    cache_bytes: bytes of the cache of ``CACHE_TOKENS`` tokens of one text in bf16
    """

    parameters: int
    active_parameters: int
    flops_per_token: float
    steps: int
    tokens: int
    cache_bytes: int

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return self.tokens * self.flops_per_token

    def plain(self) -> PlainDict:
        """The costs as plain values."""
        return asdict(self)


def gpt_config(run: PlainDict, vocab_size: int) -> GPTConfig:
    """The config of a variant's model."""
    return GPTConfig.from_dict({"vocab_size": vocab_size, **run["model"]})


def cost(run: PlainDict, vocab_size: int) -> Cost:
    """The costs of a variant."""
    config = gpt_config(run, vocab_size)
    count = meta_model(config).num_parameters()
    tokens = run["trainer"]["max_steps"] * tokens_per_step(run)
    return Cost(
        parameters=count.total,
        active_parameters=count.active,
        flops_per_token=training_flops(config),
        steps=run["trainer"]["max_steps"],
        tokens=tokens,
        cache_bytes=config.cache_bytes(1, CACHE_TOKENS, torch.bfloat16),
    )


def training_flops(config: GPTConfig) -> float:
    """FLOPs of training per token of a full context, without keys after the query or outside its window."""
    return _training_flops(dumps(config.to_dict(), sort_keys=True))


@cache
def _training_flops(config: str) -> float:
    return count_flops(GPTConfig.from_dict(loads(config)), (), RunConfig().lora)[1]


def tokens_per_step(run: PlainDict) -> int:
    """Tokens that one optimizer step of a variant reads."""
    return int(run["trainer"]["batch_size"] * run["model"]["context_length"])


def with_hidden(run: PlainDict, hidden: int) -> PlainDict:
    """The same variant with another width of its feed-forward networks."""
    run = copy.deepcopy(run)
    run["model"]["ffn"]["hidden"] = hidden
    return run


def match_parameters(name: str, run: PlainDict, wanted: int, vocab_size: int) -> PlainDict:
    """The variant with ``ffn.hidden`` solved, by bisection, so that it has ``wanted`` parameters.

    Raises:
        ConfigError: no width comes within 1%.
    """
    if "hidden" not in run["model"]["ffn"]:
        raise ConfigError(
            f"budget=params sets ffn.hidden, which ffn={run['model']['ffn']['name']} of {name} lacks: use budget=tokens"
        )

    @cache
    def count(hidden: int) -> int:
        return meta_model(gpt_config(with_hidden(run, hidden), vocab_size)).num_parameters().total

    if abs(meta_model(gpt_config(run, vocab_size)).num_parameters().total - wanted) == 0:
        return run
    best = nearest(count, wanted)
    if abs(count(best) / wanted - 1) > TOLERANCE:
        raise ConfigError(
            f"no ffn.hidden gives {name} the {wanted:,} parameters of the baseline within {TOLERANCE:.0%}: {best} gives"
            f" {count(best):,}; change its size, or use another budget"
        )
    return with_hidden(run, best)


def nearest(count: Callable[[int], int], wanted: int) -> int:
    """The integer n >= 1 whose ``count(n)``, an increasing function, is nearest to ``wanted``."""
    low, high = 1, 1
    while count(high) < wanted and high < WIDEST:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < wanted else (low, middle)
    return min((low, high), key=lambda value: abs(count(value) - wanted))


def with_steps(name: str, run: PlainDict, steps: float, resource: str) -> PlainDict:
    """The variant with another number of steps.

    resource: name of the budget that the steps make equal, for the message

    Raises:
        ConfigError: whole steps do not come within 1%.
    """
    whole = max(1, round(steps))
    if abs(whole / steps - 1) > TOLERANCE:
        raise ConfigError(
            f"{name} would need {steps:.1f} steps for equal {resource}, and whole steps do not come within"
            f" {TOLERANCE:.0%}: raise trainer.max_steps"
        )
    run = copy.deepcopy(run)
    run["trainer"]["max_steps"] = whole
    return run
