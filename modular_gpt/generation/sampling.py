"""Sampling: the table of filters, the functions behind it, and the sampler that applies them to (B, V) logits.

**To add a sampling filter, add one row to** ``FILTERS``, at the place where it is to be applied. The setting of
``GenerationConfig``, its validation, its help text, the table in docs/generation.md, and the refusal by greedy
decoding, beam search and contrastive search all follow from the row:

    def keep_top_n_sigma(logits: Tensor, n: float) -> Tensor:
        allowed = ~logits.isneginf()  # an earlier filter may have removed tokens
        spread = torch.stack([row[kept].std(correction=0) for row, kept in zip(logits, allowed)])
        return logits.masked_fill(logits < logits.amax(-1, keepdim=True) - n * spread[:, None], -torch.inf)

    Filter(
        "top_n_sigma",                     # name of the setting
        keep_top_n_sigma,                  # (logits (B, V), value) -> logits (B, V); removed tokens become -inf
        "keep the tokens whose logit lies within n standard deviations of the largest one",  # help text
        above_zero,                        # check(name, value) raises a ConfigError
        source="https://arxiv.org/abs/2411.07641",
    )

A filter must leave at least one token of each row. See ``Filter`` for the fields that have a default.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError, NonFiniteError
from modular_gpt.generation.sequences import RowGenerators, TokenBuffer

_FEW = 1024  # most likely tokens, whose probability usually suffices, so that the vocabulary is not sorted
_SMALLEST = 2.0**-126  # smallest normal number of float32
_LARGEST = 1e30  # of a setting: its product with a logit or a count stays finite in float32
_LARGEST_LOGIT = torch.finfo(torch.float32).max
_STEPS_BETWEEN_CHECKS = 16  # of the logits, on devices with which reading a result synchronises


# ----- checks of a setting's value -----------------------------------------------------------------------------------


def above_zero(name: str, value: float) -> None:
    """Raise a ConfigError unless 0 < value <= 1e30."""
    if not 0 < value <= _LARGEST:
        raise ConfigError(f"{name} must be above 0 and at most {_LARGEST:g}, got {value}")


def one_or_more(name: str, value: int) -> None:
    """Raise a ConfigError unless value >= 1."""
    if value < 1:
        raise ConfigError(f"{name} must be 1 or more, or null for off, got {value}")


def probability(name: str, value: float) -> None:
    """Raise a ConfigError unless 0 < value <= 1."""
    if not 0 < value <= 1:
        raise ConfigError(f"{name} must lie in (0, 1], got {value}")


def finite(name: str, value: float) -> None:
    """Raise a ConfigError unless -1e30 <= value <= 1e30."""
    if not -_LARGEST <= value <= _LARGEST:
        raise ConfigError(f"{name} must be a finite number from -{_LARGEST:g} to {_LARGEST:g}, got {value}")


def _check_temperature(name: str, value: float) -> None:
    if not 0 < value <= _LARGEST:
        bound = "above 0" if not value > _LARGEST else f"at most {_LARGEST:g}"
        raise ConfigError(f"{name} must be {bound}, got {value}; for always the most likely token use greedy=true")


def _check_min_p(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], got {value}")


# ----- filters: (B, V) logits -> (B, V) logits -----------------------------------------------------------------------


def scale(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature after subtracting the maximum of each row, so that nothing overflows."""
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, _SMALLEST)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row, and all that equal the k-th."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities sum to at least p."""
    if p >= 1:
        return logits
    return _keep_first(logits, -logits, p)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as likely as the most likely one."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose surprise is closest to the entropy, until their probabilities sum to p."""
    if p >= 1:
        return logits
    log_probabilities = logits.log_softmax(-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, keepdim=True)
    return _keep_first(logits, (-log_probabilities - entropy).abs(), p)


def _keep_first(logits: Tensor, rank: Tensor, p: float) -> Tensor:
    """Keep tokens in the order of ``rank``, lowest first, until their probabilities sum to p."""
    probabilities, order = logits.softmax(-1), None
    if logits.device.type == "cpu" and logits.shape[-1] > _FEW:  # sorting a vocabulary takes as long as a small model
        order = rank.topk(_FEW, largest=False).indices
        if not bool((probabilities.gather(-1, order).sum(-1) >= p).all()):
            order = None
    if order is None:
        order = rank.argsort(dim=-1)
    held = probabilities.gather(-1, order)
    kept = held.cumsum(-1) - held < p  # the tokens before do not sum to p yet
    first = logits.gather(-1, order).masked_fill(~kept, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, first)


def token_counts(ids: Tensor, vocab_size: int, padding: Tensor | None = None) -> Tensor:
    """The number of occurrences (B, V) of each token in ids (B, T), without the ``padding`` (B,) leading columns."""
    counts = torch.zeros(ids.shape[0], vocab_size, device=ids.device)
    if padding is None:
        return counts.scatter_add_(1, ids, torch.ones((), device=ids.device).expand_as(ids))
    text = torch.arange(ids.shape[1], device=ids.device) >= padding[:, None]
    return counts.scatter_add_(1, ids, text.float())


def penalise_repetition(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of tokens with a count by the penalty, and multiply negative ones by it."""
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(counts > 0, penalised, logits)


def penalise_counts(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Subtract ``frequency`` from a logit for every occurrence of its token, and ``presence`` once if it occurs."""
    return logits - frequency * counts - presence * (counts > 0)


def forbid_repeated_ngrams(logits: Tensor, ids: Tensor, n: int, padding: Tensor | None = None) -> Tensor:
    """Forbid tokens that would repeat an n-gram of ids (B, T)."""
    starts = ids.shape[1] - n + 1  # columns where an n-gram starts
    if starts <= 0:
        return logits
    found = torch.ones(ids.shape[0], starts, dtype=torch.bool, device=ids.device)
    for i in range(n - 1):
        found &= ids[:, i : starts + i] == ids[:, starts + i : starts + i + 1]
    if padding is not None:
        found &= torch.arange(starts, device=ids.device) >= padding[:, None]
    hits = torch.zeros_like(logits).scatter_add_(1, ids[:, n - 1 :], found.to(logits.dtype))
    return logits.masked_fill(hits > 0, -torch.inf)


def _repetition(logits: Tensor, penalty: float, text: TokenBuffer) -> Tensor:
    counts = token_counts(text.ids, logits.shape[-1], text.padding)
    return penalise_repetition(logits, counts, penalty).clamp(max=_LARGEST_LOGIT)


def _frequency(logits: Tensor, penalty: float, text: TokenBuffer) -> Tensor:
    return penalise_counts(logits, token_counts(text.generated, logits.shape[-1]), penalty, 0.0)


def _presence(logits: Tensor, penalty: float, text: TokenBuffer) -> Tensor:
    return penalise_counts(logits, token_counts(text.generated, logits.shape[-1]), 0.0, penalty)


def _repeated_ngrams(logits: Tensor, n: int, text: TokenBuffer) -> Tensor:
    """``forbid_repeated_ngrams``, except in rows in which it would forbid all tokens."""
    allowed = forbid_repeated_ngrams(logits, text.ids, n, text.padding)
    return torch.where(allowed.isneginf().all(-1, keepdim=True), logits, allowed)


# ----- the table -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """One sampling filter and the setting that controls it.

    name: name of the setting, which becomes a field of ``SamplingSettings``
    function: (logits (B, V) in float32, value) -> logits (B, V); with ``reads_text`` also (..., text: TokenBuffer)
    help: one clause for --help and docs
    check: check(name, value) raises a ConfigError for a value that cannot work
    value_type: type of the setting; it includes ``None`` if null turns the filter off
    default: value that turns the filter off
    random: whether the filter changes the distribution from which tokens are drawn. Greedy decoding, beam search and
        contrastive search draw nothing and refuse it. A filter that is not random changes the scores of tokens, which
        all strategies use.
    reads_text: whether the function needs the tokens so far
    source: address of the paper
    """

    name: str
    function: Callable[..., Tensor]
    help: str
    check: Callable[[str, Any], None]
    value_type: Any = float | None
    default: Any = None
    random: bool = True
    reads_text: bool = False
    source: str = ""


def _penalty(name: str, function: Callable[..., Tensor], help: str, source: str) -> Filter:
    """A number that is subtracted from logits of generated tokens; 0 turns it off."""
    return Filter(name, function, help, finite, float, 0.0, random=False, reads_text=True, source=source)


# In the order of application: filters that change scores (random=False) come before those of the distribution.
FILTERS: tuple[Filter, ...] = (
    Filter(
        "repetition_penalty",
        _repetition,
        "make tokens of prompt and text less likely: divide positive logits by this value, multiply negative ones",
        above_zero,
        float,
        1.0,
        random=False,
        reads_text=True,
        source="https://arxiv.org/abs/1909.05858",
    ),
    _penalty(
        "frequency_penalty",
        _frequency,
        "subtract this value from a logit for each time that the token was generated",
        source="https://platform.openai.com/docs/api-reference",
    ),
    _penalty(
        "presence_penalty",
        _presence,
        "subtract this value from a logit once if the token was generated",
        source="https://platform.openai.com/docs/api-reference",
    ),
    Filter(
        "no_repeat_ngram",
        _repeated_ngrams,
        "forbid tokens that would repeat an n-gram of prompt and text",
        one_or_more,
        int | None,
        random=False,
        reads_text=True,
        source="https://arxiv.org/abs/1705.04304",
    ),
    Filter(
        "temperature",
        scale,
        "divide the logits by this value: below 1 sharpens the distribution, above 1 flattens it",
        _check_temperature,
        float,
        1.0,
        source="https://arxiv.org/abs/1503.02531",
    ),
    Filter(
        "top_k",
        keep_top_k,
        "keep the k most likely tokens",
        one_or_more,
        int | None,
        source="https://arxiv.org/abs/1805.04833",
    ),
    Filter(
        "top_p",
        keep_top_p,
        "keep the fewest most likely tokens that hold this probability together",
        probability,
        source="https://arxiv.org/abs/1904.09751",
    ),
    Filter(
        "min_p",
        keep_min_p,
        "keep the tokens that are at least this fraction as likely as the most likely one",
        _check_min_p,
        source="https://arxiv.org/abs/2407.01082",
    ),
    Filter(
        "typical_p",
        keep_typical,
        "keep the tokens whose surprise is closest to the entropy, until they hold this probability together",
        probability,
        source="https://arxiv.org/abs/2202.00666",
    ),
)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The token (B,) of each row at which the cumulative probabilities (B, V) pass ``uniform`` (B,), in [0, 1)."""
    total = probabilities.to(uniform.dtype).cumsum(-1)
    target = uniform[:, None] * total[:, -1:]
    return torch.searchsorted(total, target, right=True)[:, 0].clamp(max=total.shape[-1] - 1)


class ChoiceSettings(Protocol):
    """Settings of the sampler besides those of the filters; see ``SamplingSettings``."""

    greedy: bool
    logit_bias: dict[int, float]
    suppress_tokens: list[int]


class Sampler:
    """Applies the filters whose setting is on, in the order of the table, and chooses tokens.

    Every strategy passes the model's logits through ``adjust``, which also checks that they are finite.
    """

    def __init__(self, settings: ChoiceSettings, vocab_size: int, device: torch.device) -> None:
        self.settings = settings
        active = [(row, getattr(settings, row.name)) for row in FILTERS]
        active = [(row, value) for row, value in active if value != row.default]
        self._penalties = [item for item in active if not item[0].random]
        self._filters = [item for item in active if item[0].random]
        self._bias = _bias(settings, vocab_size).to(device) if settings.logit_bias or settings.suppress_tokens else None
        self._every = 1 if device.type == "cpu" else _STEPS_BETWEEN_CHECKS
        self._steps = 0

    def adjust(self, logits: Tensor, text: TokenBuffer) -> Tensor:
        """The scores of the tokens after ``text``: logits (B, V) with bias and penalties, in float32.

        Raises:
            NonFiniteError: the model's logits are NaN or infinite; checked at each step on a CPU, and at the first and
                every 16th step on other devices.
        """
        if self._steps % self._every == 0:
            check_finite(logits, text.length)
        self._steps += 1
        scores = logits.float()
        if self._bias is not None:
            scores = (scores + self._bias).clamp(max=_LARGEST_LOGIT)
        return _apply(self._penalties, scores, text)

    def distribution(self, logits: Tensor, text: TokenBuffer) -> Tensor:
        """Probabilities (B, V) of the token after ``text`` from the model's logits (B, V); greedy: 1 for one token."""
        scores = self.adjust(logits, text)
        if self.settings.greedy:
            return torch.zeros_like(scores).scatter_(1, scores.argmax(-1, keepdim=True), 1.0)
        return _apply(self._filters, scores, text).softmax(-1)

    def choose(self, logits: Tensor, text: TokenBuffer, generators: RowGenerators) -> Tensor:
        """The token (B,) after ``text``, from the model's logits (B, V)."""
        if self.settings.greedy:
            return self.adjust(logits, text).argmax(-1)
        return self.draw(self.distribution(logits, text), generators)

    def draw(self, weights: Tensor, generators: RowGenerators) -> Tensor:
        """A token (B,) of each row, with probabilities in proportion to ``weights`` (B, V), which need not sum to 1."""
        return weights.argmax(-1) if self.settings.greedy else draw(weights, generators.uniform())


def _apply(filters: list[tuple[Filter, Any]], logits: Tensor, text: TokenBuffer) -> Tensor:
    for row, value in filters:
        logits = row.function(logits, value, text) if row.reads_text else row.function(logits, value)
    return logits


def _bias(settings: ChoiceSettings, vocab_size: int) -> Tensor:
    """The bias (V,) of the logits; -inf forbids a token."""
    bias = torch.zeros(vocab_size)
    for token, value in settings.logit_bias.items():
        bias[int(token)] = float(value)
    bias[[int(token) for token in settings.suppress_tokens]] = -torch.inf
    return bias


def check_finite(logits: Tensor, position: int) -> None:
    """Raise a NonFiniteError if the model's logits (B, V) contain NaN or +inf, or a row of -inf."""
    if not bool(logits.amax(-1).isfinite().all()):
        raise NonFiniteError(
            f"the model's logits after {position} tokens are not finite (NaN or infinity): its weights are damaged, or"
            f" its activations overflow {str(logits.dtype).removeprefix('torch.')}; use another checkpoint or dtype"
        )
