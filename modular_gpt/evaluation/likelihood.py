"""Log-probabilities of continuations, several at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from modular_gpt.evaluation.windows import check_finite
from modular_gpt.generation import left_pad
from modular_gpt.model import GPTModel


class Continued(NamedTuple):
    """A continuation and the ids before it, at least one.

    name: for messages
    """

    before: Sequence[int]
    ids: Sequence[int]
    name: str


class Likelihood(NamedTuple):
    """The log-probability of a continuation (nats), and whether greedy decoding produces it."""

    logprob: float
    is_greedy: bool


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Batches of at most ``size`` indices of texts, sorted by length with the longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def likelihoods(model: GPTModel, batch: Sequence[Continued]) -> Iterator[Likelihood]:
    """The log-probability of each continuation, at most as long as the context; what comes before is cut at the left.

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    limit, device = model.config.context_length, model.embedding.weight.device
    rows = [[*text.before, *text.ids][-(limit + 1) :] for text in batch]
    ids, padding = left_pad([row[:-1] for row in rows], device)
    hidden, _ = model.hidden_states(ids, padding=padding)
    for row, text in zip(hidden, batch, strict=True):
        target = torch.tensor(text.ids, device=device)
        scores = model.logits(row[-len(text.ids) :]).float().log_softmax(-1)
        value = scores.gather(1, target[:, None]).double().sum().item()
        check_finite(value, text.name)
        yield Likelihood(value, bool((scores.argmax(-1) == target).all()))
