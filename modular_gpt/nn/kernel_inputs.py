"""Inputs of attention kernels (sinks, equal widths), and the softmax and weighted sum of attention without a kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_one_width(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad queries, keys and values with zeros to the same width, which the flash kernel of a CPU requires."""
    width = max(q.shape[-1], v.shape[-1])
    q, k, v = (x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    return q, k, v


def with_sink(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Append a zero key and value, and a mask column with the sinks (H,), so that the key's score is the sink.

    Returns keys (B, K, S + 1, N), values (B, K, S + 1, M) and the mask (1 or B, H, T, S + 1).
    """
    rows = q.shape[0] if mask is None else mask.shape[0]
    heads, count, n_keys = q.shape[1], q.shape[2], k.shape[2]
    if mask is None:
        mask = q.new_zeros(1, 1, count, n_keys)
    elif mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    column = sinks.to(q.dtype)[None, :, None, None].expand(rows, heads, count, 1)
    mask = torch.cat([mask.expand(rows, heads, count, n_keys), column], dim=-1)
    return F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), mask


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax of scores (B, H, T, S) in at least float32; sinks (H,): scores of one more key, which is dropped."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return scores.softmax(-1, dtype=dtype)
    column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, column], -1).softmax(-1, dtype=dtype)[..., :-1]


def weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    """Weights (B, H, T, S), values (B, K, S, M) -> (B, H, T, M): the weighted sums of the values."""
    batch, heads, count, n_keys = weights.shape
    return (weights.reshape(batch, v.shape[1], -1, n_keys) @ v).reshape(batch, heads, count, -1)
