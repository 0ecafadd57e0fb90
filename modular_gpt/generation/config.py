"""Settings of generation as typed dataclasses, whose values are those of a config file."""

import math
from collections.abc import Set
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import numpy as np

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.former_names import by_present_names, former_names
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.validation import from_mapping, known_keywords, one_of
from modular_gpt.generation.sampling import FILTERS

OVERFLOWS = ("slide", "window", "error")
STRATEGIES = ("sample", "beam", "contrastive", "speculative", "lookup")
SEARCHES = ("beam", "contrastive")  # draw nothing
FORMER_NAMES = {
    "samples": "num_return_sequences",
    "beams": "num_beams",
    "log_probabilities": "logprobs",
    "lookup_ngram": "prompt_lookup_ngram",
}
RANDOM = tuple(row.name for row in FILTERS if row.random)  # filters of the distribution to draw from
# Settings -> the strategies that use them; other strategies refuse them.
_ONLY = {
    "num_beams": ("beam",),
    "length_penalty": ("beam",),
    "contrastive_alpha": ("contrastive",),
    "contrastive_candidates": ("contrastive",),
    "draft_tokens": ("speculative", "lookup"),
    "prompt_lookup_ngram": ("lookup",),
    "compile": ("sample", "beam"),
    "stop": ("sample", "contrastive", "speculative", "lookup"),
    **dict.fromkeys((*RANDOM, "greedy", "seed"), ("sample", "speculative", "lookup")),
}
_MAX_LOGIT = 3.4028234663852886e38  # largest number of float32
_MAX_EXPONENT = 60.0  # limit of ln(length ** length_penalty), so that scores divided by the power stay normal numbers

# A field for each row of the table of filters. The annotation lets a type checker accept a base made at run time.
FilterSettings: Any = make_dataclass(
    "FilterSettings",
    [(row.name, row.value_type, field(default=row.default)) for row in FILTERS],
    namespace={"__doc__": "\n".join(f"{row.name}: {row.help}" for row in FILTERS), "__module__": __name__},
)


@dataclass
class SamplingSettings(FilterSettings):
    """Settings of the choice of the next token: scores are adjusted, then filtered, then a token is drawn.

    logit_bias: add a number to the logit of a token, as a mapping of token ids to numbers; -inf forbids the token
    suppress_tokens: ids that are never generated
    greedy: take the most likely token instead of drawing one
    seed: seed of the random numbers, which differ between rows, so a text does not depend on the other rows of its
        batch; null draws a seed from PyTorch's global generator
    """

    logit_bias: dict[int, float] = field(default_factory=dict)
    suppress_tokens: list[int] = field(default_factory=list)
    greedy: bool = False
    seed: int | None = None

    def check(self, vocab_size: int) -> None:
        """Raise a ConfigError for a value that cannot work with a vocabulary of this size."""
        for row in FILTERS:
            value = getattr(self, row.name)
            if value is not None:
                row.check(row.name, value)
        for token, bias in self.logit_bias.items():
            _check_bias(token, bias, vocab_size)
        for token in self.suppress_tokens:
            _check_token("suppress_tokens", token, vocab_size)
        never = {int(token) for token, bias in self.logit_bias.items() if float(bias) == -math.inf}
        if len(never.union(self.suppress_tokens)) == vocab_size:
            raise ConfigError(
                f"logit_bias and suppress_tokens forbid all {vocab_size} tokens, so none can be generated; allow one"
            )
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must be 0 or more, got {self.seed}")


@former_names(**FORMER_NAMES)
@known_keywords("GenerationConfig")
@dataclass
class GenerationConfig(SamplingSettings):
    """All settings of a generation.

    max_new_tokens: largest number of tokens to generate for each text
    num_return_sequences: number of texts for each prompt; with beam search the best ones
    stop_tokens: ids that end a text and belong to it
    stop: strings that end a text and do not belong to it
    logprobs: return the log-probability of each new token under the model itself, before bias, penalties and filters
    overflow: handling of texts past the context: ``slide`` lets each token attend to the last context_length tokens, if
        the position encoding permits; ``window`` reads the last half of the context again whenever it is full;
        ``error`` raises an error
    compile: run single steps as one compiled graph
    strategy: decoding method: ``sample`` draws one token after the other, or takes the most likely one if greedy;
        ``beam`` searches for the most likely text; ``contrastive`` weighs probability against similarity to the text so
        far; ``speculative`` lets a smaller model draft tokens that the model checks together; ``lookup`` drafts the
        tokens that followed the same tokens earlier in the text. The last two keep the distribution of ``sample``
    num_beams: rows that beam search keeps for each prompt
    length_penalty: exponent of the number of new tokens by which beam search divides the sum of log-probabilities
    contrastive_alpha: weight of the similarity in contrastive search, from 0 to 1
    contrastive_candidates: number of most likely tokens among which contrastive search chooses
    draft_tokens: number of tokens that ``speculative`` and ``lookup`` draft at a time
    prompt_lookup_ngram: longest n-gram that ``lookup`` searches for in the text
    """

    max_new_tokens: int = 64
    num_return_sequences: int = 1
    stop_tokens: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    logprobs: bool = False
    overflow: str = "slide"
    compile: bool = False
    strategy: str = "sample"
    num_beams: int = 4
    length_penalty: float = 1.0
    contrastive_alpha: float = 0.6
    contrastive_candidates: int = 4
    draft_tokens: int = 5
    prompt_lookup_ngram: int = 3

    @classmethod
    def read(cls, max_new_tokens: int | None, settings: PlainMapping) -> "GenerationConfig":
        """Settings from keywords. Raises a ConfigError for an unknown name or a value of the wrong type."""
        length = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        return cls.from_values({**length, **settings})

    @classmethod
    def from_values(cls, values: PlainMapping) -> "GenerationConfig":
        """Settings from a mapping, also by former names. Raises a ConfigError for an unknown name or a wrong type."""
        return from_mapping(cls, _with_lists(by_present_names(values, FORMER_NAMES)), "")

    def checked(self, vocab_size: int) -> "GenerationConfig":
        """A copy with values of the declared types. Raises a ConfigError for a value that cannot work."""
        copy = self.from_values({setting.name: getattr(self, setting.name) for setting in fields(self)})
        copy.check(vocab_size)
        return copy

    def check(self, vocab_size: int) -> None:
        """Raise a ConfigError for a value that cannot work, alone or with the others."""
        super().check(vocab_size)
        if self.max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens must be 0 or more, got {self.max_new_tokens}")
        counts = ("num_return_sequences", "num_beams", "contrastive_candidates", "draft_tokens", "prompt_lookup_ngram")
        for name in counts:
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
        self._check_length_penalty()
        self._check_strategy()

    def _check_length_penalty(self) -> None:
        largest = _MAX_EXPONENT / math.log(max(self.max_new_tokens, 2))
        if not abs(self.length_penalty) <= largest:
            raise ConfigError(
                f"length_penalty={self.length_penalty} overflows for texts of {self.max_new_tokens} tokens;"
                f" use a number from {-largest:.0f} to {largest:.0f}"
            )

    def _check_strategy(self) -> None:
        """Raise a ConfigError for a setting that the strategy would ignore."""
        defaults = GenerationConfig()
        changed = [name for name in _ONLY if getattr(self, name) != getattr(defaults, name)]
        for name in changed:
            if self.strategy not in _ONLY[name]:
                raise ConfigError(f"strategy={self.strategy} has no use for {name}; leave {name} out")
            if self.greedy and name in RANDOM:
                raise ConfigError(
                    f"greedy=true takes the most likely token and has no use for {name}; leave one of them out"
                )
        count = self.num_return_sequences
        if self.strategy == "beam" and count > self.num_beams:
            raise ConfigError(
                f"num_return_sequences={count} best texts need as many beams, got num_beams={self.num_beams}"
            )
        if count > 1 and (self.greedy or self.strategy == "contrastive"):
            raise ConfigError(
                f"num_return_sequences={count} would all be the same text, since nothing is drawn;"
                " use num_return_sequences=1"
            )


def _with_lists(values: PlainMapping) -> PlainDict:
    """Convert the settings that are lists from a single item, a set, a range or an array."""
    converted = dict(values)
    for name in ("stop", "stop_tokens", "suppress_tokens"):
        value = converted.get(name)
        if isinstance(value, (str, int)):
            converted[name] = [value]
        elif isinstance(value, (Set, range, np.ndarray)):
            converted[name] = sorted(value)
    return converted


def _check_token(name: str, token: object, vocab_size: int) -> None:
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
        raise ConfigError(f"{name} names token {token!r}, but ids run from 0 to {vocab_size - 1}")


def _check_bias(token: Any, bias: Any, vocab_size: int) -> None:
    try:
        number, value = int(token), float(bias)
    except (TypeError, ValueError):
        raise ConfigError(f"logit_bias maps token ids to numbers, got {token!r}: {bias!r}") from None
    _check_token("logit_bias", number, vocab_size)
    if not (value == -math.inf or abs(value) <= _MAX_LOGIT):
        raise ConfigError(f"logit_bias of token {number} must be -inf or a number that float32 can hold, got {value}")
