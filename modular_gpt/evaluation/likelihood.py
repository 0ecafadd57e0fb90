"""Batched computation of the log-probabilities of continuations."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from modular_gpt.evaluation.windows import check_finite
from modular_gpt.generation import left_pad
from modular_gpt.model import GPTModel


class LikelihoodRequest(NamedTuple):
    """A continuation to score.

    context: token ids before the continuation, at least one
    ids: token ids of the continuation
    name: noun for the continuation in error messages
    """

    context: Sequence[int]
    ids: Sequence[int]
    name: str


class Likelihood(NamedTuple):
    """The log-probability of a continuation (nats), and whether greedy decoding produces it."""

    logprob: float
    is_greedy: bool


def by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield batches of at most ``size`` indices of ``lengths``, in descending order of length."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


@torch.no_grad()
def likelihoods(model: GPTModel, batch: Sequence[LikelihoodRequest]) -> Iterator[Likelihood]:
    """Yield the likelihood of each continuation of a batch, which is computed in one forward pass.

    A continuation must not be longer than the model's context; the context before it is truncated on the left.

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    limit, device = model.config.context_length, model.embedding.weight.device
    rows = [[*request.context, *request.ids][-(limit + 1) :] for request in batch]
    ids, padding = left_pad([row[:-1] for row in rows], device)
    hidden, _ = model.hidden_states(ids, padding=padding)
    for row, request in zip(hidden, batch, strict=True):
        targets = torch.tensor(request.ids, device=device)
        logprobs = model.logits(row[-len(request.ids) :]).float().log_softmax(-1)
        total = logprobs.gather(1, targets[:, None]).double().sum().item()
        check_finite(total, request.name)
        yield Likelihood(total, bool((logprobs.argmax(-1) == targets).all()))
