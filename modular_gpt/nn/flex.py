"""FlexAttention (https://pytorch.org/blog/flexattention/): one compiled kernel with mask, bias and softcap inside.

A block mask tells the kernel which blocks of keys each block of queries reads; it skips the others.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.nn.attention_forms import AttentionInputs

_BLOCK = 128  # queries, and keys, that the kernel takes at once
_GRAPHS = 256  # shapes that it may be compiled for in one process


@cache
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def attention(*args: Any, **kwargs: Any) -> Tensor:  # past PyTorch's limit of 8 shapes it would run unfused
        with torch._dynamo.config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=_GRAPHS):
            return compiled(*args, **kwargs)

    return attention


def flex(
    inputs: AttentionInputs, scale: float, softcap: float | None, sinks: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Attention of several queries to keys of consecutive columns: (B, H, T, M).

    sinks: (H,) logit of an extra key with a zero value; bias: (1, H, T, S) added to the scores

    Raises:
        ConfigError: gradients are asked for on a CPU.
    """
    q, k, v, n_keys = inputs.q, inputs.k, inputs.v, inputs.n_keys
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise ConfigError("backend=flex does not train on a CPU; use backend=auto")
    extra = sinks is not None  # one more key, whose score the sink replaces
    if extra:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        bias = None if bias is None else F.pad(bias, (0, 1))

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            value = softcap * torch.tanh(value / softcap)
        if bias is not None:
            value = value + bias[0, h, i, j]
        return value if sinks is None else torch.where(j == n_keys, sinks[h], value)

    mask = inputs.pos.memo(("flex", inputs.window, n_keys, extra), lambda: _block_mask(inputs, extra))
    shared = q.shape[1] != k.shape[1]
    return _compiled()(q, k, v, score_mod=score, block_mask=mask, scale=scale, enable_gqa=shared)


def _block_mask(inputs: AttentionInputs, extra: bool) -> Any:
    """Who sees whom, by blocks of 128 and inside them; with a key more, which all see."""
    from torch.nn.attention.flex_attention import BlockMask

    n_queries, n_keys, device = inputs.n_queries, inputs.n_keys, inputs.q.device
    before, padding = n_keys - n_queries, inputs.pos.padding
    window = n_keys if inputs.window is None else inputs.window
    hidden = None if padding is None else padding - inputs.key_columns[0]  # keys of each row that are padding

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        distance = i + before - j
        near = (distance >= 0) & (distance < window)
        if hidden is not None:
            near = (near & (j >= hidden[b])) | (distance == 0)
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
