"""From logits to a choice: pure functions on (B, V) logits, and their order.

temperature https://arxiv.org/abs/1503.02531, top-k https://arxiv.org/abs/1805.04833, top-p
https://arxiv.org/abs/1904.09751, min-p https://arxiv.org/abs/2407.01082, typical https://arxiv.org/abs/2202.00666,
repetition penalty https://arxiv.org/abs/1909.05858, frequency and presence penalty
https://platform.openai.com/docs/api-reference, no repeated n-gram https://arxiv.org/abs/1705.04304.

What a filter removes becomes -inf. Every filter leaves at least one token.
"""

import torch
from torch import Tensor

from modular_gpt.generation.config import SamplingSettings
from modular_gpt.generation.sequences import RowGenerators, TokenBuffer

_FEW = 1024  # tokens that usually hold the probability asked for


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits of each row (and what equals the k-th)."""
    threshold = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The smallest set of most likely tokens that hold at least p of the probability."""
    return _keep_first(logits, -logits, p)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the most likely one."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -torch.inf)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """Tokens whose surprise is closest to the entropy, until they hold p of the probability."""
    log_probabilities = logits.log_softmax(-1)
    entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, keepdim=True)
    return _keep_first(logits, (-log_probabilities - entropy).abs(), p)


def _keep_first(logits: Tensor, rank: Tensor, p: float) -> Tensor:
    """Tokens in the order of ``rank``, lowest first, until they hold p of the probability."""
    probabilities, order = logits.softmax(-1), None
    if logits.device.type == "cpu" and logits.shape[-1] > _FEW:  # to sort a vocabulary takes as long as a small model
        order = rank.topk(_FEW, largest=False).indices
        if not bool((probabilities.gather(-1, order).sum(-1) >= p).all()):
            order = None
    if order is None:
        order = rank.argsort(dim=-1)
    held = probabilities.gather(-1, order)
    kept = held.cumsum(-1) - held < p  # what comes before does not hold p yet
    first = logits.gather(-1, order).masked_fill(~kept, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, order, first)


def token_counts(ids: Tensor, vocab_size: int, padding: Tensor | None = None) -> Tensor:
    """(B, V) how often each token stands in ids (B, T); ``padding`` (B,) leading columns do not count."""
    counts = torch.zeros(ids.shape[0], vocab_size, device=ids.device)
    if padding is None:
        return counts.scatter_add_(1, ids, torch.ones((), device=ids.device).expand_as(ids))
    text = torch.arange(ids.shape[1], device=ids.device) >= padding[:, None]
    return counts.scatter_add_(1, ids, text.float())


def penalise_repetition(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Divide positive logits of tokens that were seen by the penalty, multiply negative ones."""
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(counts > 0, penalised, logits)


def penalise_counts(logits: Tensor, counts: Tensor, frequency: float, presence: float) -> Tensor:
    """Subtract ``frequency`` for every occurrence of a token and ``presence`` once for any."""
    return logits - frequency * counts - presence * (counts > 0)


def forbid_repeated_ngrams(logits: Tensor, ids: Tensor, n: int, padding: Tensor | None = None) -> Tensor:
    """Forbid what would complete an n-gram that already stands in ids (B, T)."""
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


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(B,) the token of each row at which the summed probabilities (B, V) pass ``uniform`` (B,), in [0, 1)."""
    total = probabilities.to(uniform.dtype).cumsum(-1)
    target = uniform[:, None] * total[:, -1:]
    return torch.searchsorted(total, target, right=True)[:, 0].clamp(max=total.shape[-1] - 1)


class Sampler:
    """The functions above, in order, with one set of settings for a vocabulary of ``vocab_size``."""

    def __init__(self, settings: SamplingSettings, vocab_size: int, device: torch.device) -> None:
        self.settings = settings
        self.bias: Tensor | None = None
        if settings.logit_bias:
            self.bias = torch.zeros(vocab_size, device=device)
            for token, value in settings.logit_bias.items():
                self.bias[int(token)] = value

    def adjust(self, logits: Tensor, text: TokenBuffer) -> Tensor:
        """Bias and penalties, which look at the text so far: (B, V) -> (B, V) in float32.

        Frequency and presence count what was generated, the others all of the text. Where everything would be
        forbidden, nothing is.
        """
        settings, adjusted, vocab_size = self.settings, logits.float(), logits.shape[-1]
        if self.bias is not None:
            adjusted = adjusted + self.bias
        if settings.repetition_penalty != 1:
            counts = token_counts(text.ids, vocab_size, text.padding)
            adjusted = penalise_repetition(adjusted, counts, settings.repetition_penalty)
        if settings.frequency_penalty or settings.presence_penalty:
            counts = token_counts(text.generated, vocab_size)
            adjusted = penalise_counts(adjusted, counts, settings.frequency_penalty, settings.presence_penalty)
        if settings.no_repeat_ngram is not None:
            allowed = forbid_repeated_ngrams(adjusted, text.ids, settings.no_repeat_ngram, text.padding)
            adjusted = torch.where(allowed.isneginf().all(-1, keepdim=True), adjusted, allowed)
        return adjusted

    def filter(self, logits: Tensor) -> Tensor:
        """Temperature and the filters: (B, V) -> (B, V), softmax of which is the distribution to draw from."""
        settings = self.settings
        logits = logits / settings.temperature
        if settings.top_k is not None:
            logits = keep_top_k(logits, settings.top_k)
        if settings.top_p is not None and settings.top_p < 1:
            logits = keep_top_p(logits, settings.top_p)
        if settings.min_p is not None:
            logits = keep_min_p(logits, settings.min_p)
        if settings.typical_p is not None and settings.typical_p < 1:
            logits = keep_typical(logits, settings.typical_p)
        return logits

    def distribution(self, logits: Tensor, text: TokenBuffer) -> Tensor:
        """(B, V) probabilities of the token after ``text``, from the model's logits (B, V); greedy: all on one."""
        adjusted = self.adjust(logits, text)
        if self.settings.greedy:
            return torch.zeros_like(adjusted).scatter_(1, adjusted.argmax(-1, keepdim=True), 1.0)
        return self.filter(adjusted).softmax(-1)

    def choose(self, logits: Tensor, text: TokenBuffer, noise: RowGenerators) -> Tensor:
        """(B,) the token after ``text``."""
        if self.settings.greedy:
            return self.adjust(logits, text).argmax(-1)
        return self.draw(self.distribution(logits, text), noise)

    def draw(self, weights: Tensor, noise: RowGenerators) -> Tensor:
        """(B,) a token of each row with probabilities in proportion to ``weights`` (B, V), which need not sum to 1."""
        return weights.argmax(-1) if self.settings.greedy else draw(weights, noise.uniform())
