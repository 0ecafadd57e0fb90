"""A long text in windows of the model's context, so that every token but the first is predicted exactly once."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.core.errors import ConfigError, NonFiniteError
from modular_gpt.model import GPTModel

_LOGITS = 2**24  # held at once; 64 MiB in float32


class Window(NamedTuple):
    """The model reads ids[start:end]; its last ``scored`` predictions, of the tokens up to and with ids[end], count."""

    start: int
    end: int
    scored: int


def sliding_windows(count: int, context: int, stride: int) -> Iterator[Window]:
    """The windows of a text of ``count`` tokens: of ``context`` tokens each, ``stride`` apart.

    What a window predicts counts where no window before it has predicted it. So every token but the first counts once,
    and it is predicted from all tokens before it or from at least context - stride + 1 of them. With stride = context
    the text is cut into chunks.

    Raises:
        ConfigError: stride is not in 1 ... context.
    """
    if context < 1:
        raise ConfigError(f"context must be at least 1, got {context}")
    if not 1 <= stride <= context:
        raise ConfigError(f"stride must be from 1 to the context of {context}, got {stride}")
    start = done = 0  # tokens 1 ... done have counted
    while done < count - 1:
        end = min(start + context, count - 1)
        yield Window(start, end, end - done)
        start, done = start + stride, end


def check_finite(value: float, place: str) -> None:
    """Raise a NonFiniteError where a log-probability is not finite; ``place`` names the text in the message."""
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the model's logits are not finite at {place}: its weights are damaged, or its training diverged, or they"
            " overflow in this dtype; use another checkpoint, or dtype=float32"
        )


@torch.no_grad()
def log_probabilities(model: GPTModel, ids: Tensor, scored: int) -> Tensor:
    """(B, T + 1) ids -> (B, scored): log-probability of each of the last tokens, given those before it; in float32."""
    hidden, _ = model.hidden_states(ids[:, :-1])
    wanted, hidden = ids[:, -scored:], hidden[:, -scored:]
    rows = max(1, _LOGITS // model.config.vocab_size)
    chunks = zip(hidden.flatten(0, 1).split(rows), wanted.flatten().split(rows), strict=True)
    negative = [F.cross_entropy(model.logits(x).float(), target, reduction="none") for x, target in chunks]
    return -torch.cat(negative).view(wanted.shape)
