"""Linear attention: https://arxiv.org/abs/2006.16236

The softmax is replaced by a product of positive features, phi(x) = elu(x) + 1, so that all earlier keys and values are
summed in one matrix per head: training takes linear time, decoding constant memory per token.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache
from modular_gpt.core.contracts import (
    COLUMNS,
    ROWS,
    Attention,
    AttentionConfig,
    Dims,
    ParallelStyle,
    Position,
    Positions,
)
from modular_gpt.core.observer import is_observed, report
from modular_gpt.core.registry import filled, plain
from modular_gpt.core.validation import positive
from modular_gpt.core.weight_transfer import AttentionWeights, TransferReport
from modular_gpt.nn.effective_weights import SCORES_AND_WEIGHTS, causal_products, report_mix
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import shard_heads
from modular_gpt.nn.weight_transfer import head_weights, init_heads


class LinearAttention(Attention["LinearAttention.Config"], name="linear"):
    """Linear attention: a constant state instead of a cache that grows with the text."""

    accepts_bias = False
    separates_documents = True
    only_speed = ("chunk",)

    @dataclass
    class Config(AttentionConfig):
        """Settings of linear attention.

        head_dim: Width of a head. By default (null) d_model / n_heads.
        qkv_bias: Use biases in the query, key and value projections. By default (null) the model's bias setting
            applies.
        out_bias: Use a bias in the output projection. By default (null) the model's bias setting applies.
        chunk: Number of tokens that one matrix product mixes before the state is updated. It changes speed, not
            results.
        eps: Added to the normaliser.
        """

        head_dim: int | None = None
        qkv_bias: bool | None = None
        out_bias: bool | None = None
        chunk: int = 64
        eps: float = 1e-6

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.config = config
        self.head_dim = plain(config.head_dim)
        wide = dims.n_heads * self.head_dim
        qkv_bias, out_bias = plain(config.qkv_bias), plain(config.out_bias)
        self.query = nn.Linear(dims.d_model, wide, qkv_bias)
        self.key = nn.Linear(dims.d_model, wide, qkv_bias)
        self.value = nn.Linear(dims.d_model, wide, qkv_bias)
        self.out = residual_linear(wide, dims.d_model, out_bias)

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        positive("attention", head_dim=config.head_dim, chunk=config.chunk, eps=config.eps)

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        head_dim = dims.head_dim("attention.head_dim") if config.head_dim is None else config.head_dim
        return filled(config, head_dim=head_dim, qkv_bias=dims.bias, out_bias=dims.bias)

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return plain(config.head_dim)

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        width = plain(config.head_dim)
        return CacheSpec(states=((dims.n_heads, width, width), (dims.n_heads, width)))

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        dtype = torch.promote_types(x.dtype, torch.float32)
        q = report("attention.query", F.elu(self._split(self.query(x)).to(dtype)) + 1)
        k = report("attention.key", F.elu(self._split(self.key(x)).to(dtype)) + 1)
        v = report("attention.value", self._split(self.value(x)).to(dtype))
        valid = pos.valid()
        if valid is not None:
            k = k * valid[:, None, :, None]
        rotated_q, rotated_k = self.position.rotate(q, pos), self.position.rotate(k, pos)
        state: tuple[Tensor | None, Tensor | None] = (None, None)
        if cache is not None:
            state = (cache.tensors[0], cache.tensors[1])
        # rotated features may be negative, so the normaliser uses the features before rotation
        # (RoFormer, https://arxiv.org/abs/2104.09864, equation 19)
        chunk, starts = self.config.chunk, pos.document_starts
        total, last_memory = _causal_products(rotated_q, rotated_k, v, state[0], chunk, starts)
        if starts is None:
            key_sums = k.cumsum(dim=2) if state[1] is None else k.cumsum(dim=2) + state[1][:, :, None]
            normaliser = (q * key_sums).sum(-1, keepdim=True)
        else:
            normaliser, _ = _causal_products(q, k, torch.ones_like(k[..., :1]), None, chunk, starts)
        normaliser = normaliser + self.config.eps
        mixed = total / normaliser
        if is_observed():
            mixed = report_mix(
                mixed,
                v,
                lambda: report("attention.scores", causal_products(rotated_q, rotated_k, starts)) / normaliser,
                lambda: torch.zeros_like(v) if state[0] is None else rotated_q @ state[0].to(dtype) / normaliser,
                SCORES_AND_WEIGHTS,
            )
        if cache is not None:
            memory, sums = cache.tensors
            memory.copy_(last_memory)
            sums.copy_(key_sums[:, :, -1])
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2).to(x.dtype))
        return out

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        shard_heads(rank, world_size, n_heads=self.query.out_features // self.head_dim)
        return {"query": COLUMNS, "key": COLUMNS, "value": COLUMNS, "out": ROWS}

    def canonical_weights(self) -> AttentionWeights:
        return head_weights(self, self.head_dim, self.head_dim, scale=1.0)

    @torch.no_grad()
    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Copy the projections; the outputs still differ from softmax attention until the model is trained."""
        return init_heads(self, replace(source, scale=1.0), self.canonical_weights())

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, H * N) -> (B, H, T, N)"""
        out: Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return out


def _causal_products(
    q: Tensor, k: Tensor, v: Tensor, memory: Tensor | None, chunk: int, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each t the sum over s <= t of (q_t . k_s) v_s, plus q_t times ``memory`` of earlier tokens.

    It is computed by a masked matrix product within a chunk, and by the running sum of k v^T between chunks.

    q, k: (B, H, T, N); v: (B, H, T, M); memory: (B, H, N, M), or None
    starts: (B, T) the first s that t sees; None: 0; with it, memory is None

    Returns the sums (B, H, T, M) and the memory after the last token.
    """
    count = q.shape[2]
    chunk = min(chunk, count)
    padding = -count % chunk
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, chunk)) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).tril()  # (B, H, chunks, chunk, chunk)
    if starts is None:
        after = (k.transpose(-1, -2) @ v).cumsum(dim=2)  # memory after each chunk, (B, H, chunks, N, M)
    else:
        starts = F.pad(starts, (0, padding), mode="replicate").unflatten(1, (-1, chunk))[:, None]
        scores = scores.masked_fill(starts[..., :, None] != starts[..., None, :], 0.0)
        after, q = _document_memories(q, k, v, starts)
    if memory is not None:
        after = after + memory[:, :, None]
    first = torch.zeros_like(after[:, :, :1]) if memory is None else memory[:, :, None]
    before = torch.cat([first, after[:, :, :-1]], dim=2)
    return (scores @ v + q @ before).flatten(2, 3)[:, :, :count], after[:, :, -1]


def _document_memories(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of k v^T over the document that is open after each chunk, and queries that read it in the next chunk.

    q, k: (B, H, chunks, chunk, N); v: (B, H, chunks, chunk, M); starts: (B, 1, chunks, chunk)

    Returns (B, H, chunks, N, M), and q with zeros where a token belongs to a document that began in its chunk.
    """
    last = starts[..., -1]  # (B, 1, chunks): the document that is open after each chunk
    sums = (k * (starts == last[..., None])[..., None]).transpose(-1, -2) @ v
    same = (last[..., :, None] == last[..., None, :]).tril().to(sums.dtype)  # (B, 1, chunks, chunks)
    memories = (same @ sums.flatten(3)).view_as(sums)
    earlier = F.pad(last[..., :-1], (1, 0), value=-1)
    return memories, q * (starts == earlier[..., None])[..., None]
