"""Settings of generation as typed dataclasses, checked in one place; plain enough for a config file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.settings import from_mapping, one_of

OVERFLOWS = ("slide", "window", "error")


@dataclass
class SamplingSettings:
    """How the next token is chosen.

    greedy: always the most likely token; otherwise drawn from softmax(logits / temperature), filtered by
    top_k: the k most likely tokens; top_p: the fewest that hold this probability; min_p: those at least this
        fraction as likely as the most likely; typical_p: the least surprising ones that hold this probability
    repetition_penalty: above 1 makes what was seen less likely; frequency_penalty: subtracted from the logit for each
        time a token was generated; presence_penalty: once if it was; no_repeat_ngram n: no n tokens in a row twice
        (reads the whole text at each step)
    logit_bias: token id -> what is added to its logit
    seed: of private random numbers, of which every row has its own: a row's text does not depend on its
        neighbours; null takes a seed from PyTorch's global generator
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None

    def check(self, vocab_size: int) -> None:
        """Refuse, by a ConfigError, what cannot work for a vocabulary of this size."""
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(
                f"temperature must be above 0, got {self.temperature}; for always the most likely token use greedy=true"
            )
        for name, above_zero in (("top_p", True), ("typical_p", True), ("min_p", False)):
            value = getattr(self, name)
            if value is not None and not (0 < value <= 1 if above_zero else 0 <= value <= 1):
                raise ConfigError(f"{name} must lie in {'(' if above_zero else '['}0, 1], got {value}")
        for name in ("top_k", "no_repeat_ngram"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, or null for off, got {value}")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise ConfigError(f"repetition_penalty must be above 0 (1 is off), got {self.repetition_penalty}")
        for name in ("frequency_penalty", "presence_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} must be a finite number, got {getattr(self, name)}")
        for token, bias in self.logit_bias.items():
            _check_bias(token, bias, vocab_size)
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, got {self.seed}")


@dataclass
class GenerationSettings(SamplingSettings):
    """Everything that ``generate`` can be asked.

    max_new_tokens: at most so many per text; samples: continuations of each prompt
    stop_tokens: ids that end a text (and belong to it)
    overflow: past the context, ``slide`` lets every token see the last context_length ones (positions permitting),
        ``window`` starts anew from the last half of the context whenever it is full, ``error`` refuses
    """

    max_new_tokens: int = 64
    samples: int = 1
    stop_tokens: list[int] = field(default_factory=list)
    overflow: str = "slide"

    @classmethod
    def read(cls, max_new_tokens: int, settings: Mapping[str, Any]) -> "GenerationSettings":
        """From keywords; raises a ConfigError for an unknown name or a value of the wrong type."""
        return from_mapping(cls, {"max_new_tokens": max_new_tokens, **settings}, "generate")

    def check(self, vocab_size: int) -> None:
        super().check(vocab_size)
        if self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must be 0 or more, got {self.max_new_tokens}")
        if self.samples < 1:
            raise ConfigError(f"samples must be 1 or more, got {self.samples}")
        one_of(self.overflow, OVERFLOWS, "overflow")
        for token in self.stop_tokens:
            _check_token("stop_tokens", token, vocab_size)


def _check_token(name: str, token: Any, vocab_size: int) -> None:
    if not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ConfigError(f"{name} names token {token!r}, but ids run from 0 to {vocab_size - 1}")


def _check_bias(token: Any, bias: Any, vocab_size: int) -> None:
    try:
        number, value = int(token), float(bias)
    except (TypeError, ValueError):
        raise ConfigError(f"logit_bias maps token ids to numbers, got {token!r}: {bias!r}") from None
    _check_token("logit_bias", number, vocab_size)
    if math.isnan(value) or value == math.inf:
        raise ConfigError(f"logit_bias of token {number} must be a number or -inf, got {value}")
