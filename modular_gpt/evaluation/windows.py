"""Sliding windows over a text that is longer than the model's context; each token but the first is scored once."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.core.errors import ConfigError, NonFiniteError
from modular_gpt.model import GPTModel

_LOGITS = 2**24  # maximum number of logits computed at once; 64 MiB in float32


class Window(NamedTuple):
    """The model reads ids[start:end] and predicts ids[start + 1 : end + 1]; the last ``scored`` predictions count."""

    start: int
    end: int
    scored: int


def sliding_windows(count: int, context: int, stride: int) -> Iterator[Window]:
    """Yield the windows of a text of ``count`` tokens: ``context`` tokens each, ``stride`` tokens apart.

    A window scores the tokens that no earlier window has scored, so that every token but the first is scored once. It
    is predicted from all tokens before it, or from at least context - stride + 1 of them. With stride = context the
    windows are disjoint chunks.

    Raises:
        ConfigError: ``context`` is less than 1, or ``stride`` is not in [1, context].
    """
    if context < 1:
        raise ConfigError(f"context must be at least 1, got {context}")
    if not 1 <= stride <= context:
        raise ConfigError(f"stride must be from 1 to the context of {context}, got {stride}")
    start = done = 0  # tokens 1 ... done are scored
    while done < count - 1:
        end = min(start + context, count - 1)
        yield Window(start, end, end - done)
        start, done = start + stride, end


def check_finite(value: float, place: str) -> None:
    """Raise a NonFiniteError if the log-probability ``value`` is not finite; place: position in the text, as a noun."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the model's logits are not finite at {place}: its weights are damaged, its training diverged, or the"
            " logits overflow in this dtype; use another checkpoint, or dtype=float32"
        )


@torch.no_grad()
def log_probabilities(model: GPTModel, ids: Tensor, scored: int) -> Tensor:
    """(B, T + 1) ids -> (B, scored) float32: the log-probability of each of the last ``scored`` tokens of a row."""
    hidden, _ = model.hidden_states(ids[:, :-1])
    targets, hidden = ids[:, -scored:], hidden[:, -scored:]
    rows = max(1, _LOGITS // model.config.vocab_size)
    chunks = zip(hidden.flatten(0, 1).split(rows), targets.flatten().split(rows), strict=True)
    losses = [F.cross_entropy(model.logits(x).float(), target, reduction="none") for x, target in chunks]
    return -torch.cat(losses).view(targets.shape)
