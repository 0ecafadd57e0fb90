"""Multi-head latent attention: https://arxiv.org/abs/2405.04434, section 2.1

Keys and values are computed from one small latent vector per token; only the latent and one rotated key that all heads
share are cached. While decoding, queries attend to the latents: the matrix that would expand latents to keys is
absorbed into the query, and the matrix that would expand them to values is applied to the weighted sum of latents.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache, TokenCache
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
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import is_observed, unobserved
from modular_gpt.core.registry import filled, plain
from modular_gpt.core.validation import positive
from modular_gpt.core.weight_transfer import AttentionWeights, TransferReport
from modular_gpt.nn.fused_linear import has_hooks
from modular_gpt.nn.norm import norm_without_bias
from modular_gpt.nn.query_temperature import QueryTemperature
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import AttentionScoreConfig, ScoreBias, Weighting, sdpa, shard_heads
from modular_gpt.nn.weight_transfer import CARRIED, carry_past, fill, fill_out, low_rank, regroup


class Widths(NamedTuple):
    """Latent rank, and the widths of a head: unrotated key, rotated key, value."""

    latent: int
    nope: int
    rope: int
    value: int


class ReadLinear(nn.Linear):
    """A linear layer whose weight is also read directly while decoding, so that it must not be packed."""


class MultiHeadLatentAttention(Attention["MultiHeadLatentAttention.Config"], name="mla"):
    """Multi-head latent attention: caches one small latent per token instead of keys and values (DeepSeek)."""

    separates_documents = True

    @dataclass
    class Config(AttentionConfig):
        """Settings of multi-head latent attention.

        kv_lora_rank: Width of the latent from which keys and values are computed. By default (null) d_model / 8.
        q_lora_rank: Width of the latent from which queries are computed. By default (null) queries are not compressed.
        qk_nope_head_dim: Width of a head's query and key without rotation. By default (null) d_model / n_heads.
        qk_rope_head_dim: Width of a head's rotated query and key. By default (null) half of d_model / n_heads with
            rotary positions, otherwise 0.
        v_head_dim: Width of a head's value. By default (null) d_model / n_heads.
        window: Number of keys that a query attends to, its own included. By default (null) all earlier ones.
        qkv_bias: Use biases in the query, key and value projections. By default (null) the model's bias setting
            applies.
        out_bias: Use a bias in the output projection. By default (null) the model's bias setting applies.
        scale: Multiply attention scores by this factor. By default (null) 1 / sqrt(qk_nope_head_dim +
            qk_rope_head_dim).
        softcap: Limit attention scores to (-c, c) by c tanh(scores / c). By default (null) they are not limited.
        latent_norm: Name of the norm of the latents; null leaves them unnormalised.
        latent_norm_eps: The eps of latent_norm.
        query_temperature: Settings that let scores grow with the position of the query: beta, length and shift; empty
            for none.
        dropout: Dropout probability of attention weights. By default (null) the model's dropout applies.
        backend: Implementation of the score computation: auto, flash (fused kernels or an error), math (written out) or
            flex (FlexAttention).
        """

        kv_lora_rank: int | None = None
        q_lora_rank: int | None = None
        qk_nope_head_dim: int | None = None
        qk_rope_head_dim: int | None = None
        v_head_dim: int | None = None
        window: int | None = None
        qkv_bias: bool | None = None
        out_bias: bool | None = None
        scale: float | None = None
        softcap: float | None = None
        latent_norm: str | None = "rmsnorm"
        latent_norm_eps: float = 1e-6
        query_temperature: dict = field(default_factory=dict)
        dropout: float | None = None
        backend: str = "auto"

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.config = config
        self.n_heads = dims.n_heads
        self.local_heads = slice(None)  # the heads that this process computes
        self.widths = latent, nope, rope, value = widths(config)
        self.scoring = AttentionScoreConfig.read(config)
        self.temperature = QueryTemperature.read(config.query_temperature)
        self.slides = self.temperature is None
        bias, out_bias = plain(config.qkv_bias), plain(config.out_bias)
        rank = dims.d_model
        self.query_down: nn.Linear | None = None
        self.query_norm: nn.Module | None = None
        if config.q_lora_rank is not None:
            rank = config.q_lora_rank
            self.query_down = nn.Linear(dims.d_model, rank, bias)
            self.query_norm = _latent_norm(config, rank)
        self.query = nn.Linear(rank, dims.n_heads * (nope + rope), bias and self.query_down is None)
        self.latent = nn.Linear(dims.d_model, latent + rope, bias)  # the latent, then the shared rotated key
        self.latent_norm = _latent_norm(config, latent)
        self.key = ReadLinear(latent, dims.n_heads * nope, bias=False)
        self.value = ReadLinear(latent, dims.n_heads * value, bias=False)
        self.out = residual_linear(dims.n_heads * value, dims.d_model, out_bias)

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        positive(
            "attention",
            kv_lora_rank=config.kv_lora_rank,
            q_lora_rank=config.q_lora_rank,
            qk_nope_head_dim=config.qk_nope_head_dim,
            v_head_dim=config.v_head_dim,
            latent_norm_eps=config.latent_norm_eps,
        )
        AttentionScoreConfig.read(config).check()
        QueryTemperature.read(config.query_temperature)
        rope = widths(config).rope
        if rope % 2 or rope < 0 or (position.rotates and rope == 0):
            raise ConfigError(
                f"attention.qk_rope_head_dim must be even, and above 0 where the position rotates, got {rope}"
            )
        _latent_norm(config, 1)

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        if config.kv_lora_rank is None and dims.d_model < 8:
            raise ConfigError(f"d_model={dims.d_model} leaves no latent of d_model / 8; set attention.kv_lora_rank")
        if config.qk_nope_head_dim is None or config.v_head_dim is None:
            dims.head_dim("attention.qk_nope_head_dim and attention.v_head_dim")
        head = dims.d_model // dims.n_heads
        config = filled(
            config,
            kv_lora_rank=dims.d_model // 8,
            qk_nope_head_dim=head,
            qk_rope_head_dim=max(2, head // 4 * 2) if position.rotates else 0,
            v_head_dim=head,
            qkv_bias=dims.bias,
            out_bias=dims.bias,
            dropout=dims.dropout,
        )
        _, nope, rope, _ = widths(config)
        return filled(config, scale=AttentionScoreConfig.default_scale(nope + rope))

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return widths(config).rope

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        latent, _, rope, _ = widths(config)
        return CacheSpec(rows=((1, latent + rope),), window=config.window)

    @classmethod
    def score_flops(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        _, nope, rope, value = widths(config)
        return 2 * dims.n_heads * (nope + rope + value)

    @torch.no_grad()
    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Initialise from another attention with heads of the same widths; returns {} if they differ.

        The latent is the best approximation of its rank to keys and values together, by SVD. The bias of the keys adds
        the same number to all scores of a query and is left out; the bias of the values is folded into the output bias.
        The rotated dimensions have no effect at first: their queries are zero.
        """
        latent, nope, _, value = self.widths
        width, d_model = self.n_heads * nope, self.latent.in_features
        if source.query.shape != (self.n_heads, nope, d_model) or source.out.shape[1:] != (self.n_heads, value):
            return {}
        keys, values = (regroup(heads, self.n_heads).flatten(0, 1) for heads in (source.key, source.value))
        rank = carry_past(self.latent_norm, self.latent, latent)
        up, down = low_rank(torch.cat([keys, values]), rank)
        self.latent.weight[: len(down)] = down
        for layer, rows in ((self.key, up[:width]), (self.value, up[width:])):
            layer.weight.zero_()
            layer.weight[:, : len(down)] = rows
        report = dict.fromkeys(("latent.weight", "key.weight", "value.weight"), f"rank {len(down)} by SVD")
        if rank < latent:
            report |= {"latent.bias": CARRIED, "latent_norm.weight": CARRIED}
        return {**self._init_query(source), **report, **fill_out(self, source, moved=True)}

    def _init_query(self, source: AttentionWeights) -> TransferReport:
        scale, rotated = source.scale / self.scoring.scale, self.widths.rope
        weight = F.pad(source.query * scale, (0, 0, 0, rotated)).flatten(0, 1)
        bias = None if source.query_bias is None else F.pad(source.query_bias * scale, (0, rotated)).flatten()
        down = self.query_down
        if down is None or self.query_norm is None:
            return fill(self, "query", weight, bias, f"times {scale:.4g}" if scale != 1 else "")
        rank = carry_past(self.query_norm, down, down.out_features)
        with_bias = bias is not None and down.bias is not None
        matrix = torch.cat([weight, cast(Tensor, bias)[:, None]], dim=1) if with_bias else weight
        up, rows = low_rank(matrix, rank)
        self.query.weight.zero_()
        self.query.weight[:, : len(rows)] = up
        down.weight[: len(rows)] = rows[:, : down.in_features]
        if with_bias:
            down.bias[: len(rows)] = rows[:, -1]
        report = dict.fromkeys(("query.weight", "query_down.weight"), f"rank {len(rows)} by SVD")
        report |= {"query_down.bias": report["query.weight"]} if with_bias else {}
        if rank < down.out_features:
            report |= {"query_down.bias": CARRIED, "query_norm.weight": CARRIED}
        return report

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        latent, _, rope, _ = self.widths
        q = x if self.query_down is None or self.query_norm is None else self.query_norm(self.query_down(x))
        q = self.query(q).unflatten(-1, (-1, self.widths.nope + rope)).transpose(1, 2)  # (B, H, T, nope + rope)
        compressed = self.latent(x)
        kept = self.latent_norm(compressed[..., :latent])[:, None]  # (B, 1, T, latent)
        if rope:
            q = torch.cat([q[..., :-rope], self.position.rotate(q[..., -rope:], pos)], dim=-1)
            kept = torch.cat([kept, self.position.rotate(compressed[:, None, :, latent:], pos)], dim=-1)
        q = q if self.temperature is None else self.temperature(q, pos)
        columns = pos.columns
        if cache is not None:
            assert isinstance(cache, TokenCache)
            (kept,), columns = cache.append(pos, kept)
        absorbed = cache is not None and self._absorbing_is_cheaper(pos.count, kept.shape[2]) and self._can_absorb()
        kept = kept.to(q.dtype)
        over_latents = partial(self._over_latents, q, kept, pos, columns) if absorbed else None
        if over_latents is None or is_observed():
            mixed = self._over_keys(q, kept, pos, columns, over_latents)
        else:
            mixed = over_latents()
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        """Shard the heads; every process computes the latents, which its heads need."""
        self.local_heads = shard_heads(rank, world_size, n_heads=self.n_heads)
        return {"query": COLUMNS, "key": COLUMNS, "value": COLUMNS, "out": ROWS}

    def _absorbing_is_cheaper(self, count: int, n_keys: int) -> bool:
        """Whether attending to latents takes fewer multiplications per head than expanding them to keys and values."""
        latent, nope, _, value = self.widths
        absorbed = count * n_keys * 2 * latent + count * latent * (nope + value)
        expanded = count * n_keys * (nope + value) + n_keys * latent * (nope + value)
        return absorbed < expanded

    def _can_absorb(self) -> bool:
        """Whether ``key`` and ``value`` are plain matrices, without an adapter or hooks, which must run."""
        return all(type(layer) is ReadLinear and not has_hooks(layer) for layer in (self.key, self.value))

    def _over_keys(
        self, q: Tensor, kept: Tensor, pos: Positions, columns: Tensor, over_latents: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """Expand the latents to keys and values of every head, for training and long prompts: (B, H, T, value).

        over_latents: computes the result instead if keys and values are expanded for observers alone
        """
        latent, nope, rope, value = self.widths
        kept_latent = kept[:, 0, :, :latent]
        k = self.key(kept_latent).unflatten(-1, (-1, nope)).transpose(1, 2)
        v = self.value(kept_latent).unflatten(-1, (-1, value)).transpose(1, 2)
        if rope:
            rotated = self.shards.copied(kept[..., latent:])  # each process adds the gradient of its heads
            k = torch.cat([k, rotated.expand(-1, k.shape[1], -1, -1)], dim=-1)
        return self._attend(q, k, v, pos, columns, over_latents)

    def _over_latents(self, q: Tensor, kept: Tensor, pos: Positions, columns: Tensor) -> Tensor:
        """Attend to the cached latents as one key/value head that all queries share: (B, H, T, value)."""
        latent, nope, _, _ = self.widths
        to_key = self.key.weight.unflatten(0, (self.n_heads, -1))  # (H, nope, latent)
        to_value = self.value.weight.unflatten(0, (self.n_heads, -1))  # (H, value, latent)
        q = torch.cat([q[..., :nope] @ to_key, q[..., nope:]], dim=-1)  # (B, H, T, latent + rope)
        with unobserved():
            mixed = self._attend(q, kept, kept[..., :latent], pos, columns)
        out: Tensor = mixed @ to_value.transpose(1, 2)
        return out

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pos: Positions,
        columns: Tensor,
        equivalent: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        bias = ScoreBias(self.position, self.n_heads, self.local_heads)
        return sdpa(q, k, v, pos, columns, Weighting(self.scoring, self.training, bias=bias), equivalent)


def widths(config: MultiHeadLatentAttention.Config) -> Widths:
    """The widths in a Config whose nulls are resolved."""
    return Widths(
        latent=plain(config.kv_lora_rank),
        nope=plain(config.qk_nope_head_dim),
        rope=plain(config.qk_rope_head_dim),
        value=plain(config.v_head_dim),
    )


def _latent_norm(config: MultiHeadLatentAttention.Config, width: int) -> nn.Module:
    if config.latent_norm is None:
        return nn.Identity()
    return norm_without_bias(config.latent_norm, config.latent_norm_eps, width)
