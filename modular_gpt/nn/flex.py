"""FlexAttention (https://pytorch.org/blog/flexattention/): one compiled kernel with mask, bias and softcap inside.

A block mask tells the kernel which blocks of keys each block of queries reads; it skips the others.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.nn.attention_forms import AttentionInputs

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128  # queries and keys per block of the kernel
_GRAPHS = 256  # largest number of shapes for which the kernel is compiled in one process


@cache
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        # beyond PyTorch's default limit of 8 shapes the kernel would run without fusion
        with torch._dynamo.config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS):
            return compiled(q, k, v, **options)

    return attention


def flex(
    inputs: AttentionInputs, scale: float, softcap: float | None, sinks: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention of several queries to keys of consecutive columns. Returns (B, H, T, M).

    sinks: (H,) logits of an extra key whose value is zero; bias: (1 or B, H, T, S) added to the scores

    Raises:
        ConfigError: queries or keys require gradients on a CPU.
    """
    q, k, v, n_keys = inputs.q, inputs.k, inputs.v, inputs.n_keys
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise ConfigError("backend=flex does not train on a CPU; use backend=auto")
    extra = sinks is not None  # an extra key whose score is replaced by the sink
    if extra:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        bias = None if bias is None else F.pad(bias, (0, 1))

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            value = softcap * torch.tanh(value / softcap)
        if bias is not None:
            value = value + bias[b if bias.shape[0] > 1 else 0, h, i, j]
        return value if sinks is None else torch.where(j == n_keys, sinks[h], value)

    mask = inputs.pos.memo(("flex", inputs.window, n_keys, extra), lambda: _block_mask(inputs, extra))
    shared = q.shape[1] != k.shape[1]
    return _compiled()(q, k, v, score_mod=score, block_mask=mask, scale=scale, enable_gqa=shared)


def _block_mask(inputs: AttentionInputs, extra: bool) -> "BlockMask":
    """The mask of FlexAttention in blocks of ``_BLOCK``; extra: all queries also see one key after the last."""
    from torch.nn.attention.flex_attention import BlockMask

    n_queries, n_keys, device = inputs.n_queries, inputs.n_keys, inputs.q.device
    before, padding = n_keys - n_queries, inputs.pos.padding
    window = n_keys if inputs.window is None else inputs.window
    hidden = None if padding is None else padding - inputs.key_columns[0]  # (B,) number of padding keys of each row
    starts = inputs.pos.document_starts

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        distance = i + before - j
        near = (distance >= 0) & (distance < window)
        if hidden is not None:
            near = (near & (j >= hidden[b])) | (distance == 0)
        if starts is not None:
            near = near & (j >= starts[b, i])
        return (near | (j == n_keys)) if extra else near

    query = before + _BLOCK * torch.arange(-(-n_queries // _BLOCK), device=device)[:, None]  # first of each block
    key = _BLOCK * torch.arange(-(-(n_keys + extra) // _BLOCK), device=device)
    reads = (key < query + _BLOCK) & (query - key - _BLOCK + 1 < window)
    if extra:
        reads[:, -1] = True
    counts = reads.sum(-1, dtype=torch.int32)[None, None]
    listed = reads.int().argsort(dim=-1, descending=True, stable=True).int()[None, None]
    lengths = (n_queries, n_keys + extra)
    return BlockMask.from_kv_blocks(counts, listed, BLOCK_SIZE=_BLOCK, mask_mod=seen, seq_lengths=lengths)
