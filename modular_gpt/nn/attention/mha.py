"""Multi-head attention and its variants.

Multi-head https://arxiv.org/abs/1706.03762, multi-query https://arxiv.org/abs/1911.02150, grouped-query
https://arxiv.org/abs/2305.13245, sliding window https://arxiv.org/abs/2004.05150 (as in Mistral,
https://arxiv.org/abs/2310.06825), query-key norm https://arxiv.org/abs/2010.04245, logit softcap
https://arxiv.org/abs/2408.00118, sinks https://arxiv.org/abs/2508.10925.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
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
from modular_gpt.nn.norm.rmsnorm import RMSNorm
from modular_gpt.nn.query_key_norm import SCOPES, PerHeadNorm, build_norm, resolved_norm
from modular_gpt.nn.query_temperature import QueryTemperature
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import AttentionScoreConfig, ScoreBias, Weighting, sdpa, shard_heads
from modular_gpt.nn.weight_transfer import head_weights, init_heads

OUTPUT_GATES: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softplus": F.softplus}


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
        v_head_dim: Width of a head's value. By default (null) head_dim.
        value_scale: Multiply values by this factor.
        output_gate: Multiply the output of each head, before the output projection, by sigmoid or softplus of a linear
            layer. By default (null) there is no gate.
        output_gate_per_head: Compute one gate for each head instead of one for each channel.
        query_temperature: Settings that let scores grow with the position of the query: beta, length and shift; empty
            for none.
        qk_norm: A norm for queries and keys, by name or as a mapping with a name and settings. By default (null) they
            are not normalised.
        qk_norm_scope: Normalise each head with common weights (head) or separate ones (per_head), or the full width of
            all heads together (full).
        qk_norm_eps: The eps of qk_norm, unless its mapping has one.
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
        v_head_dim: int | None = None
        value_scale: float = 1.0
        output_gate: str | None = None
        output_gate_per_head: bool = False
        query_temperature: dict = field(default_factory=dict)
        qk_norm: Any = None
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
        self.value_dim = plain(config.v_head_dim)
        mixed = self.n_heads * self.value_dim
        self.query = nn.Linear(dims.d_model, self.n_heads * self.head_dim, qkv_bias)
        self.key = nn.Linear(dims.d_model, self.n_kv_heads * self.head_dim, qkv_bias)
        self.value = nn.Linear(dims.d_model, self.n_kv_heads * self.value_dim, qkv_bias)
        self.out = residual_linear(mixed, dims.d_model, out_bias)
        gates = self.n_heads if config.output_gate_per_head else mixed
        self.gate: nn.Linear | None = None
        if config.output_gate is not None:
            self.gate = nn.Linear(dims.d_model, gates, qkv_bias)
        self.temperature = QueryTemperature.read(config.query_temperature)
        self.slides = self.temperature is None
        self.sinks = nn.Parameter(torch.empty(self.n_heads)) if config.sinks else None
        self.query_norm = build_norm(config.qk_norm, config.qk_norm_scope, self.n_heads, self.head_dim)
        self.key_norm = build_norm(config.qk_norm, config.qk_norm_scope, self.n_kv_heads, self.head_dim)
        self.local_heads = slice(None)  # the query heads that this process computes
        self.reset_parameters()

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        n_heads, n_kv_heads, _ = heads(config, dims)
        positive("attention", n_kv_heads=config.n_kv_heads, head_dim=config.head_dim, clip_qkv=config.clip_qkv)
        positive("attention", qk_norm_eps=config.qk_norm_eps, v_head_dim=config.v_head_dim)
        if not config.value_scale:
            raise ConfigError("attention.value_scale=0 would make the attention constant; leave it at 1")
        AttentionScoreConfig.read(config).check()
        if n_heads % n_kv_heads:
            divisors = [str(n) for n in range(1, n_heads + 1) if n_heads % n == 0]
            raise ConfigError(
                f"n_heads={n_heads} does not divide into attention.n_kv_heads={n_kv_heads}; "
                f"choose one of {', '.join(divisors)}"
            )
        _check_extras(config)
        if config.qk_norm_scope == "full" and config.qk_norm_after_rope:
            raise ConfigError(
                "attention.qk_norm_after_rope=true normalises rotated heads; it does not go with qk_norm_scope=full"
            )
        build_norm(config.qk_norm, config.qk_norm_scope, 1, 1)

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        head_dim = dims.head_dim("attention.head_dim") if config.head_dim is None else config.head_dim
        norm = resolved_norm(config.qk_norm, config.qk_norm_eps)
        return filled(
            replace(config, qk_norm=norm, qk_norm_eps=(norm or {}).get("eps", config.qk_norm_eps)),
            n_kv_heads=dims.n_heads,
            head_dim=head_dim,
            v_head_dim=head_dim,
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
        return CacheSpec(rows=((n_kv_heads, head_dim), (n_kv_heads, plain(config.v_head_dim))), window=config.window)

    @classmethod
    def score_flops(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        n_heads, _, head_dim = heads(config, dims)
        return 2 * n_heads * (head_dim + plain(config.v_head_dim))

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        q, k, v = fused_linear(x, (self.query, self.key, self.value), self.training)  # (B, T, heads * N)
        q, k = self._rotated_heads(q, self.query_norm, pos), self._rotated_heads(k, self.key_norm, pos)
        v = self._split(self._clip(v), self.value_dim)
        q = q if self.temperature is None else self.temperature(q, pos)
        v = v if self.config.value_scale == 1.0 else v * self.config.value_scale
        mixed = self._mix(q, k, v, pos, cache)
        if self.gate is not None:
            gates = OUTPUT_GATES[str(self.config.output_gate)](self.gate(x))  # (B, T, heads) or (B, T, heads * M)
            mixed = mixed * gates.unflatten(-1, (mixed.shape[1], -1)).transpose(1, 2)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, pos: Positions, cache: LayerCache | None) -> Tensor:
        """Append the new tokens to the cache and attend to all: q (B, H, T, N), k, v -> (B, H, T, M)."""
        columns = pos.columns
        if cache is not None:
            assert isinstance(cache, TokenCache)
            (k, v), columns = cache.append(pos, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)  # the cache may have another dtype than the model
        sinks = None if self.sinks is None else self.sinks[self.local_heads]
        bias = ScoreBias(self.position, self.n_heads, self.local_heads)
        return sdpa(q, k, v, pos, columns, Weighting(self.scoring, self.training, sinks, bias))

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        full = self.config.qk_norm is not None and self.config.qk_norm_scope == "full"
        if full and not isinstance(self.query_norm, RMSNorm):
            raise ConfigError(
                "attention.qk_norm_scope=full normalises all heads at once, which is divided for rmsnorm only: use"
                " attention.qk_norm=rmsnorm, or the scope head"
            )
        self.local_heads = shard_heads(rank, world_size, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads)
        norms: dict[str, ParallelStyle] = {
            name: SHARED for name in ("query_norm", "key_norm", "sinks") if getattr(self, name) is not None
        }
        for norm, count in ((self.query_norm, self.n_heads), (self.key_norm, self.n_kv_heads)):
            if isinstance(norm, PerHeadNorm):
                norm.local_heads = shard_heads(rank, world_size, n_heads=count)
        gate: dict[str, ParallelStyle] = {} if self.gate is None else {"gate": COLUMNS}
        return {"query": COLUMNS, "key": COLUMNS, "value": COLUMNS, "out": ROWS, **gate, **norms}

    def _clip(self, x: Tensor) -> Tensor:
        limit = self.config.clip_qkv
        return x if limit is None else x.clamp(-limit, limit)

    def _split(self, x: Tensor, width: int) -> Tensor:
        """(B, T, heads * N) -> (B, heads, T, N)"""
        out: Tensor = x.unflatten(-1, (-1, width)).transpose(1, 2)
        return out

    def _rotated_heads(self, x: Tensor, norm: nn.Module | None, pos: Positions) -> Tensor:
        """Split queries or keys into heads, normalise and rotate them: (B, T, heads * N) -> (B, heads, T, N)."""
        if norm is not None and self.config.qk_norm_scope == "full":
            x = norm.over_shards(x, self.shards) if isinstance(norm, RMSNorm) and self.shards.size > 1 else norm(x)
            norm = None
        x = self._clip(x)  # after a norm over the full width, as in OLMoE, and before a norm per head
        x = self._split(x, self.head_dim)
        if norm is None:
            return self.position.rotate(x, pos)
        if self.config.qk_norm_after_rope:
            out: Tensor = norm(self.position.rotate(x, pos))
            return out
        return self.position.rotate(norm(x), pos)

    def canonical_weights(self) -> AttentionWeights:
        weights = head_weights(self, self.head_dim, self.value_dim, self.scoring.scale)
        if self.config.value_scale == 1.0:
            return weights
        bias = None if weights.value_bias is None else weights.value_bias * self.config.value_scale
        return replace(weights, value=weights.value * self.config.value_scale, value_bias=bias)

    @torch.no_grad()
    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Copy the projections; if there are fewer key and value heads than before, they are means of those before."""
        report = init_heads(self, source, self.canonical_weights())
        if report and self.config.value_scale != 1.0:
            for parameter in self.value.parameters():
                parameter.div_(self.config.value_scale)
        return report

    def reset_parameters(self) -> None:
        if self.sinks is not None:
            nn.init.zeros_(self.sinks)


def heads(config: MultiHeadAttention.Config, dims: Dims) -> tuple[int, int, int]:
    """Number of query heads, number of key/value heads, and width of a head."""
    return dims.n_heads, plain(config.n_kv_heads), plain(config.head_dim)


def _check_extras(config: MultiHeadAttention.Config) -> None:
    """Raise a ConfigError for settings of the query-key norm, gate and temperature that cannot work."""
    one_of(config.qk_norm_scope, SCOPES, "attention.qk_norm_scope")
    if config.output_gate is not None:
        one_of(config.output_gate, tuple(OUTPUT_GATES), "attention.output_gate")
    QueryTemperature.read(config.query_temperature)
