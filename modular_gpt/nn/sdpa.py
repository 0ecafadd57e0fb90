"""Scaled dot-product attention as pure functions; with ``flex``, the only caller of PyTorch's attention kernels.

One rule on columns defines every mask: a query sees a key if 0 <= query column - key column < window and the key is not
padding. Causal masks, sliding windows, ring buffers, chunked prefill and ragged batches all follow from it.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from modular_gpt.core.contracts import Positions
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import is_edited, is_observed, is_wanted, report
from modular_gpt.core.registry import plain
from modular_gpt.core.validation import fraction, one_of, positive
from modular_gpt.nn.attention_forms import (
    AttentionInputs,
    Dense,
    ScoreBias,
    by_packed_pattern,
    by_pattern,
    by_rows,
    by_window,
    fits_blocks,
    needs_mask,
    packed_layout,
    seen_keys,
    text_first,
    visible,
)
from modular_gpt.nn.block_sparse import Band, Documents, block_size, block_sparse_attention
from modular_gpt.nn.flex import flex
from modular_gpt.nn.fused_linear import compiling_for_cpu
from modular_gpt.nn.kernel_inputs import pad_to_one_width, softmax, weighted_sum, with_sink
from modular_gpt.nn.sparse_patterns import SparsePattern

BACKENDS = ("auto", "flash", "math", "flex")
_BLOCKS_FROM = 256  # keys beyond a window from which blocks beat one mask, measured on a CPU for windows of 16 to 1,024
_LONG = 256  # queries from which left-padded rows are rotated instead of masked
_ROWS = 2**20  # mask elements above which a prompt is read in chunks of queries, without gradients
_RECOMPUTED = 2**20  # mask elements from which chunks, computed twice, are no slower than one mask, with gradients
_TRAINED_ROWS = 128  # queries in a chunk with gradients, the fastest of 32 to 512 on a CPU
_DOCUMENT_BLOCK = 256  # queries per block of packed documents, the fastest of 64, 128 and 256 on a CPU
_DOCUMENTS_FROM = 1024  # keys from which blocks of packed documents beat one mask
_DOCUMENT_LISTS = 0.5  # largest fraction of the keys that a block of packed documents may read to beat one mask
_SHORT = 512  # keys up to which compiled training on a CPU computes attention weights without a fused kernel
_FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


class ScoreSettings(Protocol):
    """The settings of an attention's Config that ``AttentionScoreConfig`` reads."""

    scale: float | None
    window: int | None
    softcap: float | None
    dropout: float | None
    backend: str


@dataclass(frozen=True)
class AttentionScoreConfig:
    """Settings of one attention layer that turn queries and keys into attention weights.

    scale: factor on the scores; window: number of keys that a query sees, its own included; None: all
    softcap: c in c * tanh(scores / c); None: no softcap; dropout: probability, applied to the weights in training
    backend: auto, flash (fused kernels or an error), math (unfused) or flex (FlexAttention, for more than one query at
        a time)
    pattern: selects the keys in the window that a query sees; None: all
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    dropout: float = 0.0
    backend: str = "auto"
    pattern: SparsePattern | None = None

    @classmethod
    def read(cls, config: ScoreSettings) -> "AttentionScoreConfig":
        """Read the settings from the Config of an attention whose nulls are resolved."""
        return cls(plain(config.scale), config.window, config.softcap, plain(config.dropout), config.backend)

    @staticmethod
    def default_scale(width: int) -> float:
        """1 / sqrt(width), the default scale of queries and keys of ``width``."""
        return 1 / math.sqrt(max(width, 1))

    def check(self) -> None:
        """Raise a ConfigError for a value out of range or an unsupported combination."""
        positive("attention", window=self.window, softcap=self.softcap)
        fraction("attention", dropout=self.dropout)
        one_of(self.backend, BACKENDS, "attention.backend")
        if self.backend == "flash" and self.softcap is not None:
            raise ConfigError("attention.backend=flash has no softcap; use auto, math or flex")


@dataclass(frozen=True)
class Weighting:
    """The settings of the layer and the arguments of one call that turn scores into attention weights.

    training: whether dropout is applied; sinks: (H,) logits of an extra key whose value is zero
    bias: the position's bias on the scores; None: there is none
    """

    scoring: AttentionScoreConfig
    training: bool = False
    sinks: Tensor | None = None
    bias: ScoreBias | None = None

    @property
    def dropout(self) -> float:
        return self.scoring.dropout if self.training else 0.0


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Positions,
    key_columns: Tensor,
    weighting: Weighting,
    equivalent: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Softmax attention of T queries over S keys.

    q: (B, H, T, N); k: (B, K, S, N) and v: (B, K, S, M) with K dividing H
    pos: positions of the queries; key_columns: (S,) column of each key, consecutive where T > 1; with a pattern also
        (B or 1, S) in any order
    equivalent: computes the same result from other tensors; q, k and v are then used for observers alone

    Returns (B, H, T, M).

    Raises:
        ConfigError: the backend has no kernel for this device, dtype, mask or dropout.
    """
    bias = weighting.bias
    if bias is not None and not bias.position.biases:
        weighting = replace(weighting, bias=None)
    inputs = AttentionInputs(q, k, v, pos, key_columns, pos.limit(weighting.scoring.window))
    if not is_observed():
        return _attend(inputs, weighting)
    if equivalent is None or is_edited("attention.query", "attention.key", "attention.value"):
        return _observed(inputs, weighting, partial(_attend, weights=weighting))
    return _observed(inputs, weighting, lambda _: equivalent())


def _attend(inputs: AttentionInputs, weights: Weighting) -> Tensor:
    """Choose the fastest of the equivalent algorithms of ``attention_forms``."""
    pos = inputs.pos
    if pos.count == 1 or isinstance(pos.start, Tensor) or torch.compiler.is_exporting() or inputs.key_columns.ndim == 2:
        return _dense(inputs, weights)
    if pos.padding is not None and pos.is_prefill and inputs.n_keys == pos.count >= _LONG:
        return text_first(inputs, partial(_attend, weights=weights))
    pattern, bias = weights.scoring.pattern, weights.bias
    if pattern is not None and fits_blocks(inputs, pattern, _BLOCKS_FROM):
        return by_pattern(inputs, pattern, partial(_masked, weights=weights), bias)
    if pattern is not None and (bias is None or bias.position.slides):
        layout = packed_layout(inputs, pattern, _BLOCKS_FROM)
        if layout is not None:
            return by_packed_pattern(inputs, pattern, layout, partial(_masked, weights=weights), bias)
    band = _band(inputs, weights.scoring)
    if band is None:
        documents = _documents(inputs, weights)
        if documents is not None:
            return block_sparse_attention(
                inputs.q, inputs.k, inputs.v, documents, lambda q, k, v, seen: _masked(q, k, v, seen, None, weights)
            )
        rows, recompute = _rows(inputs, weights)
        if rows < inputs.n_queries and _masks(inputs, weights):
            return by_rows(inputs, rows, partial(_dense, weights=weights), recompute)
        return _dense(inputs, weights)
    return by_window(inputs, band, partial(_dense, weights=weights), partial(_masked, weights=weights), weights.bias)


def _band(inputs: AttentionInputs, scoring: AttentionScoreConfig) -> Band | None:
    """The blocks of a sliding window; None if one mask is as fast."""
    window = inputs.window
    if window is None or scoring.pattern is not None or scoring.backend == "flex":
        return None
    if inputs.n_keys < window + _BLOCKS_FROM:
        return None
    band = Band.of(inputs.n_queries, inputs.n_keys, window, block_size(window))
    return band if band.blocks else None


def _documents(inputs: AttentionInputs, weights: Weighting) -> Documents | None:
    """The key blocks of packed documents; None if one mask is as fast.

    None in a compiled graph as well, since the number of blocks depends on the longest document.
    """
    pos, starts = inputs.pos, inputs.pos.document_starts
    if starts is None or inputs.window is not None or weights.bias is not None:
        return None
    if weights.scoring.pattern is not None or weights.scoring.backend == "flex":
        return None
    if not pos.is_prefill or inputs.n_keys < _DOCUMENTS_FROM or torch.compiler.is_compiling():
        return None
    longest = pos.memo("longest document", lambda: Documents.longest_list(starts, _DOCUMENT_BLOCK))
    if longest * _DOCUMENT_BLOCK > inputs.n_keys * _DOCUMENT_LISTS:
        return None
    return Documents(starts, _DOCUMENT_BLOCK, longest)


def _rows(inputs: AttentionInputs, weights: Weighting) -> tuple[int, bool]:
    """The number of queries in a chunk of ``by_rows``, and whether the backward pass recomputes the chunks."""
    tensors = (inputs.q, inputs.k, inputs.v, weights.sinks)
    if not torch.is_grad_enabled() or not any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return max(_ROWS // inputs.n_keys, 16), False
    return _TRAINED_ROWS if inputs.n_queries * inputs.n_keys >= _RECOMPUTED else inputs.n_queries, True


def _masks(inputs: AttentionInputs, weights: Weighting) -> bool:
    """Whether chunks of queries save memory or work, which they do if a mask or all scores are computed."""
    # a compiled graph would contain every chunk; on the meta device recomputation would add to counts of operations
    if torch.compiler.is_compiling() or weights.scoring.backend == "flex" or inputs.q.is_meta:
        return False
    biased = weights.bias is not None or weights.sinks is not None
    dropped = weights.dropout > 0 and inputs.q.device.type == "cpu"  # there is no fused kernel with dropout
    if biased or dropped or weights.scoring.pattern is not None or _use_eager(inputs.q, inputs.n_keys, weights):
        return True
    return needs_mask(inputs.pos, inputs.n_keys, inputs.window)


def _dense(inputs: AttentionInputs, weights: Weighting) -> Tensor:
    """Attention of every query to every key, with a mask where one is needed."""
    pos, n_keys, pattern = inputs.pos, inputs.n_keys, weights.scoring.pattern
    bias = None if weights.bias is None else weights.bias(pos, inputs.key_columns)
    if weights.scoring.backend == "flex" and pos.count > 1:  # single steps would compile one kernel per length
        return _flex(inputs, bias, weights)
    seen: Tensor | None = None
    if pattern is not None or needs_mask(pos, n_keys, inputs.window):
        seen = seen_keys(inputs, pattern)
    elif pos.count > 1:
        if bias is None and weights.sinks is None and not _use_eager(inputs.q, n_keys, weights):
            return _fused(inputs.q, inputs.k, inputs.v, None, None, weights, causal=True)
        seen = pos.memo("causal", lambda: visible(pos, inputs.key_columns, None))
    return _masked(inputs.q, inputs.k, inputs.v, seen, bias, weights)


def _flex(inputs: AttentionInputs, bias: Tensor | None, weights: Weighting) -> Tensor:
    """FlexAttention. Raises a ConfigError for dropout, which it does not support."""
    if weights.dropout > 0:
        raise ConfigError("backend=flex has no dropout of attention weights; set attention.dropout=0 or backend=auto")
    return flex(inputs, weights.scoring.scale, weights.scoring.softcap, weights.sinks, bias)


def _masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, weights: Weighting) -> Tensor:
    """Attention with a mask ``seen`` (B or 1, 1, T, S), None: all keys, and a bias (B or 1, H, T, S) or None."""
    scoring, count = weights.scoring, q.shape[2]
    # for one query the fused path would copy all keys and values to append the sink or to pad them to one width
    copies = count == 1 and (weights.sinks is not None or k.shape[-1] != v.shape[-1])
    if _use_eager(q, k.shape[2], weights) or (copies and scoring.backend == "auto"):
        return _eager(q, k, v, seen, bias, weights)
    return _fused(q, k, v, seen, bias, weights)


def _use_eager(q: Tensor, n_keys: int, weights: Weighting) -> bool:
    """Whether attention is computed without a fused kernel, because none supports it or because that is faster.

    The backward pass of flash kernels is slow on a CPU, so that compiled training with few keys is faster without them.
    """
    scoring = weights.scoring
    if scoring.backend == "math" or scoring.softcap is not None:
        return True
    return scoring.backend == "auto" and n_keys <= _SHORT and compiling_for_cpu(q, weights.training)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    bias: Tensor | None,
    weights: Weighting,
    causal: bool = False,
) -> Tensor:
    """Attention by PyTorch's fused kernels, with inputs reshaped or padded to the shapes that are fastest."""
    mask = seen
    if bias is not None:
        mask = bias.to(q.dtype) if seen is None else bias.to(q.dtype).masked_fill(~seen, -torch.inf)
    if weights.sinks is not None:
        k, v, mask = with_sink(q, k, v, mask, weights.sinks)
    batch, heads, count, width = q.shape
    groups, value_width = k.shape[1], v.shape[-1]
    fold = count == 1 and heads != groups
    if fold:  # the query heads of one key head become the token dimension
        q = q.reshape(batch, groups, -1, width)
        if mask is not None and mask.shape[1] == heads:
            mask = mask.reshape(mask.shape[0], groups, -1, mask.shape[-1])
    elif count > 1 and q.device.type == "cpu" and width != value_width:
        q, k, v = pad_to_one_width(q, k, v)
    out = _kernel(q, k, v, mask, weights, causal)
    return out[..., :value_width].reshape(batch, heads, count, -1)


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, weights: Weighting, causal: bool) -> Tensor:
    """PyTorch's scaled_dot_product_attention, which picks a flash or memory-efficient kernel."""
    only_fused = sdpa_kernel(_FUSED) if weights.scoring.backend == "flash" else nullcontext()
    trains = torch.is_grad_enabled() and k.requires_grad and k.device.type == "cpu"
    if trains and not torch.compiler.is_compiling() and len(k) * k.shape[1] == 1:
        # the backward pass on a CPU divides its work over rows and heads of keys: one thread would do all of it
        k, v = (x.expand(-1, q.shape[1], -1, -1) for x in (k, v))
    try:
        with only_fused:
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                dropout_p=weights.dropout,
                is_causal=causal,
                scale=weights.scoring.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )
    except RuntimeError as error:
        if weights.scoring.backend != "flash" or "kernel" not in str(error):
            raise
        raise ConfigError("backend=flash has no kernel for this device, dtype and mask; use backend=auto") from error


def _eager(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, weights: Weighting) -> Tensor:
    """Attention by its definition: matmul, softcap, bias, mask, softmax in at least float32, dropout, matmul."""
    probabilities = softmax(_scores(q, k, seen, bias, weights.scoring), weights.sinks).to(v.dtype)
    return weighted_sum(F.dropout(probabilities, weights.dropout), v)


def _scores(q: Tensor, k: Tensor, seen: Tensor | None, bias: Tensor | None, scoring: AttentionScoreConfig) -> Tensor:
    """(B, H, T, N), (B, K, S, N) -> (B, H, T, S): the arguments of the softmax, -inf where a key is masked."""
    batch, heads, count, width = q.shape
    folded = (q * scoring.scale).reshape(batch, k.shape[1], -1, width)  # (B, K, H / K * T, N)
    scores = (folded @ k.transpose(-1, -2)).reshape(batch, heads, count, -1)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    if bias is not None:
        scores = scores + bias
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)


def _observed(inputs: AttentionInputs, weights: Weighting, attend: Dense) -> Tensor:
    """Attention whose tensors are reported to observers. Fused kernels do not return scores and weights.

    Scores and weights are computed from the queries and keys, in at least float32, only for observers that want them.
    The result is that of ``attend`` unless an observer edits one of them.
    """
    inputs = replace(
        inputs,
        q=report("attention.query", inputs.q),
        k=report("attention.key", inputs.k),
        v=report("attention.value", inputs.v),
    )
    if not is_wanted("attention.scores", "attention.weights"):
        return report("attention.heads", attend(inputs))
    seen = seen_keys(inputs, weights.scoring.pattern)
    bias = None if weights.bias is None else weights.bias(inputs.pos, inputs.key_columns)
    with torch.autocast(inputs.q.device.type, enabled=False):
        q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (inputs.q, inputs.k))
        scores = report("attention.scores", _scores(q, k, seen, bias, weights.scoring))
        probabilities = report("attention.weights", softmax(scores, weights.sinks))
    if is_edited("attention.scores", "attention.weights"):
        return report("attention.heads", weighted_sum(probabilities.to(inputs.v.dtype), inputs.v))
    return report("attention.heads", attend(inputs))


def shard_heads(rank: int, world_size: int, **counts: int) -> slice:
    """The slice of heads that process ``rank`` of ``world_size`` computes.

    counts: numbers of heads, by the names of their settings; the first one is divided, all are checked

    Raises:
        ConfigError: a number of heads does not divide by ``world_size``.
    """
    for name, count in counts.items():
        if count % world_size:
            raise ConfigError(f"{name}={count} does not divide into {world_size} processes; change one")
    per_process = next(iter(counts.values())) // world_size
    return slice(rank * per_process, (rank + 1) * per_process)
