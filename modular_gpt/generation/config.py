"""Settings of generation as typed dataclasses, checked in one place; plain enough for a config file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import from_mapping, one_of

OVERFLOWS = ("slide", "window", "error")
STRATEGIES = ("sample", "beam", "contrastive", "speculative", "lookup")
# settings that one kind of strategy alone uses; given to another they are refused
_ONLY = {
    "beams": ("beam",),
    "length_penalty": ("beam",),
    "contrastive_alpha": ("contrastive",),
    "contrastive_candidates": ("contrastive",),
    "draft_tokens": ("speculative", "lookup"),
    "lookup_ngram": ("lookup",),
}
_RANDOM = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "greedy")


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
class GenerationConfig(SamplingSettings):
    """Everything that generation can be asked.

    max_new_tokens: at most so many per text; samples: continuations of each prompt (of beam search the best ones)
    stop_tokens: ids that end a text (and belong to it); stop: strings that end it (and do not)
    log_probabilities: of every new token, by the model itself: before temperature, filters and penalties
    overflow: past the context, ``slide`` lets every token see the last context_length ones (positions permitting),
        ``window`` starts anew from the last half of the context whenever it is full, ``error`` refuses
    compile: one compiled graph for all single steps
    strategy: ``sample`` draws one token after the other, or takes the likeliest where greedy
        ``beam`` looks for the likeliest text, with ``beams`` rows per prompt, scored by the sum of its log
        probabilities divided by its number of new tokens to the power of ``length_penalty``
        ``contrastive`` takes, of the ``contrastive_candidates`` likeliest tokens, the one best in probability
        minus ``contrastive_alpha`` parts of its likeness to the text
        ``speculative`` has a smaller model draft ``draft_tokens`` at a time, which the model checks at once;
        ``lookup`` drafts what followed the last ``lookup_ngram`` tokens (or fewer) earlier in the text; both give
        the distribution of ``sample``
    """

    max_new_tokens: int = 64
    samples: int = 1
    stop_tokens: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    log_probabilities: bool = False
    overflow: str = "slide"
    compile: bool = False
    strategy: str = "sample"
    beams: int = 4
    length_penalty: float = 1.0
    contrastive_alpha: float = 0.6
    contrastive_candidates: int = 4
    draft_tokens: int = 5
    lookup_ngram: int = 3

    @classmethod
    def read(cls, max_new_tokens: int, settings: Mapping[str, Any]) -> "GenerationConfig":
        """From keywords; raises a ConfigError for an unknown name or a value of the wrong type."""
        return from_mapping(cls, {"max_new_tokens": max_new_tokens, **settings}, "generate")

    def check(self, vocab_size: int) -> None:
        super().check(vocab_size)
        if self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must be 0 or more, got {self.max_new_tokens}")
        for name in ("samples", "beams", "contrastive_candidates", "draft_tokens", "lookup_ngram"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.contrastive_alpha <= 1:
            raise ConfigError(f"contrastive_alpha must lie in [0, 1], got {self.contrastive_alpha}")
        one_of(self.overflow, OVERFLOWS, "overflow")
        one_of(self.strategy, STRATEGIES, "strategy")
        for token in self.stop_tokens:
            _check_token("stop_tokens", token, vocab_size)
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop names texts of at least one character, got {list(self.stop)!r}")
        self._check_strategy()

    def _check_strategy(self) -> None:
        """Refuse what the strategy would not heed."""
        unheeded = [name for name, users in _ONLY.items() if self.strategy not in users]
        if self.strategy in ("beam", "contrastive"):
            unheeded += _RANDOM
        if self.strategy == "beam":
            unheeded.append("stop")
        if self.strategy not in ("sample", "beam"):
            unheeded.append("compile")
        defaults = GenerationConfig()
        for name in unheeded:
            if getattr(self, name) != getattr(defaults, name):
                raise ConfigError(f"strategy={self.strategy} has no use for {name}; leave {name} out")
        if self.strategy == "beam" and self.samples > self.beams:
            raise ConfigError(f"samples={self.samples} best texts need as many beams, got beams={self.beams}")
        if self.samples > 1 and (self.greedy or self.strategy == "contrastive"):
            raise ConfigError(f"samples={self.samples} would all be the same text: nothing is drawn; use samples=1")


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
