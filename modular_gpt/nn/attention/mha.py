"""Multi-head attention and its variants.

Multi-head https://arxiv.org/abs/1706.03762, multi-query https://arxiv.org/abs/1911.02150, grouped-query
https://arxiv.org/abs/2305.13245, sliding window https://arxiv.org/abs/2004.05150 (as in Mistral,
https://arxiv.org/abs/2310.06825), query-key norm https://arxiv.org/abs/2010.04245, logit softcap
https://arxiv.org/abs/2408.00118, sinks https://arxiv.org/abs/2508.10925.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache, TokenCache
from modular_gpt.core.contracts import (
    COLUMNS,
    ROWS,
    SHARED,
    Attention,
    AttentionConfig,
    Dims,
    ParallelStyle,
    Position,
    Positions,
)
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Preset, filled, plain
from modular_gpt.core.validation import one_of, positive
from modular_gpt.core.weight_transfer import AttentionWeights, TransferReport
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.norm import norm_without_bias
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import AttentionScoreConfig, ScoreBias, Weighting, sdpa, shard_heads
from modular_gpt.nn.weight_transfer import head_weights, init_heads


class MultiHeadAttention(
    Attention["MultiHeadAttention.Config"],
    name="mha",
    presets={
        "gqa": Preset("Grouped-query attention: groups of query heads share a key/value head.", {"n_kv_heads": 2}),
        "mqa": Preset("Multi-query attention: all query heads share one key/value head.", {"n_kv_heads": 1}),
        "swa": Preset("Sliding-window attention: a token sees the last `window` tokens only.", {"window": 64}),
    },
):
    """Multi-head attention: every query head has its own keys and values (GPT-2)."""

    separates_documents = True

    @dataclass
    class Config(AttentionConfig):
        """Settings of multi-head attention and its variants.

        n_kv_heads: Number of key/value heads. By default (null) as many as query heads.
        head_dim: Width of a head. By default (null) d_model / n_heads.
        window: Number of keys that a query attends to, its own included. By default (null) all earlier ones.
        qkv_bias: Use biases in the query, key and value projections. By default (null) the model's bias setting
            applies.
        out_bias: Use a bias in the output projection. By default (null) the model's bias setting applies.
        scale: Multiply attention scores by this factor. By default (null) 1 / sqrt(head_dim).
        softcap: Limit attention scores to (-c, c) by c tanh(scores / c). By default (null) they are not limited.
        sinks: Learn a logit per head that takes attention away from all keys.
        qk_norm: Name of a norm for queries and keys. By default (null) they are not normalised.
        qk_norm_scope: Normalise each head separately (head), or the full width of all heads together (full).
        qk_norm_eps: The eps of qk_norm.
        qk_norm_after_rope: Normalise queries and keys after they are rotated instead of before.
        clip_qkv: Clip queries, keys and values to [-c, c]. By default (null) they are not clipped.
        dropout: Dropout probability of attention weights. By default (null) the model's dropout applies.
        backend: Implementation of the score computation: auto, flash (fused kernels or an error), math (written out) or
            flex (FlexAttention).
        """

        n_kv_heads: int | None = None
        head_dim: int | None = None
        window: int | None = None
        qkv_bias: bool | None = None
        out_bias: bool | None = None
        scale: float | None = None
        softcap: float | None = None
        sinks: bool = False
        qk_norm: str | None = None
        qk_norm_scope: str = "head"
        qk_norm_eps: float = 1e-6
        qk_norm_after_rope: bool = False
        clip_qkv: float | None = None
        dropout: float | None = None
        backend: str = "auto"

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.config = config
        self.n_heads, self.n_kv_heads, self.head_dim = heads(config, dims)
        self.scoring = AttentionScoreConfig.read(config)
        qkv_bias, out_bias = plain(config.qkv_bias), plain(config.out_bias)
        wide, narrow = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.query = nn.Linear(dims.d_model, wide, qkv_bias)
        self.key = nn.Linear(dims.d_model, narrow, qkv_bias)
        self.value = nn.Linear(dims.d_model, narrow, qkv_bias)
        self.out = residual_linear(wide, dims.d_model, out_bias)
        self.sinks = nn.Parameter(torch.empty(self.n_heads)) if config.sinks else None
        self.query_norm = _qk_norm(config, self.head_dim, wide)
        self.key_norm = _qk_norm(config, self.head_dim, narrow)
        self.local_heads = slice(None)  # the query heads that this process computes
        self.reset_parameters()

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        n_heads, n_kv_heads, _ = heads(config, dims)
        positive("attention", n_kv_heads=config.n_kv_heads, head_dim=config.head_dim, clip_qkv=config.clip_qkv)
        positive("attention", qk_norm_eps=config.qk_norm_eps)
        AttentionScoreConfig.read(config).check()
        if n_heads % n_kv_heads:
            divisors = [str(n) for n in range(1, n_heads + 1) if n_heads % n == 0]
            raise ConfigError(
                f"n_heads={n_heads} does not divide into attention.n_kv_heads={n_kv_heads}; "
                f"choose one of {', '.join(divisors)}"
            )
        one_of(config.qk_norm_scope, ("head", "full"), "attention.qk_norm_scope")
        if config.qk_norm_scope == "full" and config.qk_norm_after_rope:
            raise ConfigError(
                "attention.qk_norm_after_rope=true normalises rotated heads; it does not go with qk_norm_scope=full"
            )
        _qk_norm(config, 1, 1)

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        head_dim = dims.head_dim("attention.head_dim") if config.head_dim is None else config.head_dim
        return filled(
            config,
            n_kv_heads=dims.n_heads,
            head_dim=head_dim,
            qkv_bias=dims.bias,
            out_bias=dims.bias,
            scale=AttentionScoreConfig.default_scale(head_dim),
            dropout=dims.dropout,
        )

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return heads(config, dims)[2]

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        _, n_kv_heads, head_dim = heads(config, dims)
        return CacheSpec(rows=((n_kv_heads, head_dim),) * 2, window=config.window)

    @classmethod
    def score_flops(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        n_heads, _, head_dim = heads(config, dims)
        return 2 * n_heads * 2 * head_dim

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        q, k, v = fused_linear(x, (self.query, self.key, self.value), self.training)  # (B, T, heads * N)
        q, k = self._place(q, self.query_norm, pos), self._place(k, self.key_norm, pos)
        mixed = self._mix(q, k, self._split(self._clip(v)), pos, cache)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, pos: Positions, cache: LayerCache | None) -> Tensor:
        """Attend to the new tokens and those of the cache, to which it appends: (B, H, T, N), ... -> (B, H, T, N)."""
        columns = pos.columns
        if cache is not None:
            assert isinstance(cache, TokenCache)
            (k, v), columns = cache.append(pos, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)  # the cache may have another dtype than the model
        sinks = None if self.sinks is None else self.sinks[self.local_heads]
        bias = ScoreBias(self.position, self.n_heads, self.local_heads)
        return sdpa(q, k, v, pos, columns, Weighting(self.scoring, self.training, sinks, bias))

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        if self.config.qk_norm is not None and self.config.qk_norm_scope == "full":
            raise ConfigError(
                "attention.qk_norm_scope=full normalises all heads at once, which cannot be divided: use head"
            )
        self.local_heads = shard_heads(rank, world_size, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads)
        norms: dict[str, ParallelStyle] = {
            name: SHARED for name in ("query_norm", "key_norm", "sinks") if getattr(self, name) is not None
        }
        return {"query": COLUMNS, "key": COLUMNS, "value": COLUMNS, "out": ROWS, **norms}

    def _clip(self, x: Tensor) -> Tensor:
        limit = self.config.clip_qkv
        return x if limit is None else x.clamp(-limit, limit)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, heads * N) -> (B, heads, T, N)"""
        out: Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return out

    def _place(self, x: Tensor, norm: nn.Module | None, pos: Positions) -> Tensor:
        """Split queries or keys into heads, normalise and rotate them: (B, T, heads * N) -> (B, heads, T, N)."""
        if norm is not None and self.config.qk_norm_scope == "full":
            x, norm = norm(x), None
        x = self._clip(x)  # after a norm over the full width, as in OLMoE, and before a norm per head
        if norm is None:
            return self.position.rotate(self._split(x), pos)
        if self.config.qk_norm_after_rope:
            out: Tensor = norm(self.position.rotate(self._split(x), pos))
            return out
        return self.position.rotate(norm(self._split(x)), pos)

    def canonical_weights(self) -> AttentionWeights:
        return head_weights(self, self.head_dim, self.scoring.scale)

    @torch.no_grad()
    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Key and value heads that more query heads come to share are the means of those these had."""
        return init_heads(self, source, self.canonical_weights())

    def reset_parameters(self) -> None:
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)


def heads(config: MultiHeadAttention.Config, dims: Dims) -> tuple[int, int, int]:
    """Number of query heads, number of key/value heads, and width of a head."""
    return dims.n_heads, plain(config.n_kv_heads), plain(config.head_dim)


def _qk_norm(config: MultiHeadAttention.Config, head_dim: int, full: int) -> nn.Module | None:
    if config.qk_norm is None:
        return None
    return norm_without_bias(config.qk_norm, config.qk_norm_eps, full if config.qk_norm_scope == "full" else head_dim)
