"""Attention weights of mixers without a softmax, for observers.

The output of such a mixer is linear in its values, so that it equals weights @ values for some weights (B, H, T, T):
scaled products in linear attention, implicit ones in recurrences and convolutions. Only observers need them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from modular_gpt.core.observer import is_edited, is_wanted, report

WEIGHTS = ("attention.weights",)
SCORES_AND_WEIGHTS = ("attention.scores", "attention.weights")


def report_mix(
    mixed: Tensor,
    v: Tensor,
    weights: Callable[[], Tensor],
    earlier: Callable[[], Tensor],
    names: tuple[str, ...] = WEIGHTS,
) -> Tensor:
    """Report the weights of the new tokens and the weighted sums of their values in each head.

    mixed: (B, H, T, M) the output of the mixer; v: (B, H, T, M) values
    weights: computes (B, H, T, T), after reporting the scores if ``names`` contains them; called only for observers
    earlier: computes the term (B, H, T, M) of earlier, cached tokens; called only if an observer edits the weights
    names: the tensors that are reported here before ``attention.heads``

    Returns ``mixed``, or the edited output if an observer edits it, the scores or the weights.
    """
    if is_wanted(*names):
        reported = report("attention.weights", weights())
        if is_edited(*names):
            mixed = reported @ v + earlier()
    return report("attention.heads", mixed)


def causal_products(q: Tensor, k: Tensor, starts: Tensor | None) -> Tensor:
    """q, k (B, H, T, N) -> (B, H, T, T): q_t . k_s where s <= t belongs to the same document, elsewhere 0.

    starts: (B, T) index of the first token of each token's document; None: each row is one document
    """
    products = (q @ k.transpose(-1, -2)).tril()
    return products if starts is None else products.masked_fill(starts[:, None, :, None] != starts[:, None, None], 0.0)


def unit_values(like: Tensor) -> Tensor:
    """One-hot values (B, H, T, T) of the T tokens of ``like`` (B, H, T, N): a mixer maps them to its weights."""
    batch, heads, count = like.shape[:3]
    return torch.eye(count, dtype=like.dtype, device=like.device).expand(batch, heads, count, count)
