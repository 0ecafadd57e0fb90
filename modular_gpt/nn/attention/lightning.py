"""Lightning attention: https://arxiv.org/abs/2401.04658, as in MiniMax-01, https://arxiv.org/abs/2501.08313

Linear attention whose memory decays by a fixed factor per head. The sum over keys is not normalised; a norm over all
heads and a gate follow. With heads sharded over processes, the squares of that norm are summed over them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache
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
from modular_gpt.core.observer import is_observed, report
from modular_gpt.core.registry import filled, plain
from modular_gpt.core.validation import one_of, positive
from modular_gpt.core.weight_transfer import AttentionWeights, TransferReport
from modular_gpt.nn.decay import decayed_products
from modular_gpt.nn.effective_weights import SCORES_AND_WEIGHTS, causal_products, report_mix, unit_values
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.norm.rmsnorm import RMSNorm
from modular_gpt.nn.pos.alibi import slopes
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import shard_heads
from modular_gpt.nn.weight_transfer import head_weights, init_heads

# the decay rate of each of n heads
DECAY_RATES: dict[str, Callable[[int], list[float]]] = {
    "alibi": slopes,
    "geometric": lambda count: [2.0 ** (-8.0 * (i + 1) / count) for i in range(count)],
}


class LightningAttention(Attention["LightningAttention.Config"], name="lightning"):
    """Lightning attention: linear attention that decays by a fixed factor per head (MiniMax-01)."""

    only_speed = ("chunk",)
    accepts_bias = False
    separates_documents = True

    @dataclass
    class Config(AttentionConfig):
        """Settings of lightning attention.

        head_dim: Width of a head. By default (null) d_model / n_heads.
        decay_scale: Factor on the decay rates of all heads.
        decay_rates: Decay rates of the heads: alibi (the slopes of ALiBi) or geometric (2^(-8 i / n_heads) for the i-th
            head). They differ only where n_heads is no power of 2.
        chunk: Number of tokens that one matrix product mixes. It changes speed, not results.
        eps: The eps of the norm over all heads.
        """

        head_dim: int | None = None
        decay_scale: float = 1.0
        decay_rates: str = "alibi"
        chunk: int = 64
        eps: float = 1e-6

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.config = config
        self.n_heads, self.head_dim = dims.n_heads, plain(config.head_dim)
        self.local_heads = slice(None)  # the heads that this process computes
        wide = self.n_heads * self.head_dim
        self.query, self.key, self.value, self.gate = (nn.Linear(dims.d_model, wide, bias=False) for _ in range(4))
        self.norm = RMSNorm(RMSNorm.Config(name="rmsnorm", eps=config.eps), wide)
        self.out = residual_linear(wide, dims.d_model, bias=False)

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        positive("attention", head_dim=config.head_dim, chunk=config.chunk, eps=config.eps)
        positive("attention", decay_scale=config.decay_scale)
        one_of(config.decay_rates, tuple(DECAY_RATES), "attention.decay_rates")

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        head_dim = dims.head_dim("attention.head_dim") if config.head_dim is None else config.head_dim
        if config.decay_rates == "geometric" and dims.n_heads & (dims.n_heads - 1) == 0:  # both are the same
            config = replace(config, decay_rates="alibi")
        return filled(config, head_dim=head_dim)

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return 0

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        width = plain(config.head_dim)
        return CacheSpec(states=((dims.n_heads, width, width),))

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        q, k, v, gate = fused_linear(x, (self.query, self.key, self.value, self.gate), self.training)
        q, k, v = (self._split(F.silu(x)) for x in (q, k, v))
        q, k, v = report("attention.query", q), report("attention.key", k), report("attention.value", v)
        valid = pos.valid()
        if valid is not None:
            k = k * valid[:, None, :, None]
        slopes_of_heads = DECAY_RATES[self.config.decay_rates](self.n_heads)[self.local_heads]
        rates = torch.tensor(slopes_of_heads, dtype=q.dtype, device=q.device) * -self.config.decay_scale
        log_decay = rates[None, :, None, None].expand(1, -1, x.shape[1], 1)
        memory = None if cache is None else cache.tensors[0]
        chunk, starts = self.config.chunk, pos.document_starts
        mixed, after = decayed_products(q, k, v, log_decay, memory, chunk, starts)
        if is_observed():
            ones = q.new_ones(*q.shape[:3], 1)
            mixed = report_mix(
                mixed,
                v,
                lambda: (
                    report("attention.scores", causal_products(q, k, starts))
                    * decayed_products(ones, ones, unit_values(q), log_decay, None, chunk, starts)[0]
                ),
                lambda: decayed_products(q, k, torch.zeros_like(v), log_decay, memory, chunk, starts)[0],
                SCORES_AND_WEIGHTS,
            )
        if cache is not None:
            cache.tensors[0].copy_(after)
        mixed = mixed.transpose(1, 2).flatten(2).to(x.dtype)
        normed = self.norm(mixed) if self.shards.size == 1 else self.norm.over_shards(mixed, self.shards)
        out: Tensor = self.out(normed * gate.sigmoid())
        return out

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        self.local_heads = shard_heads(rank, world_size, n_heads=self.n_heads)
        return {**dict.fromkeys(("query", "key", "value", "gate"), COLUMNS), "norm": SHARED, "out": ROWS}

    def canonical_weights(self) -> AttentionWeights:
        return head_weights(self, self.head_dim, self.head_dim, scale=1.0)

    @torch.no_grad()
    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Copy the projections; the outputs still differ from softmax attention until the model is trained."""
        return init_heads(self, replace(source, scale=1.0), self.canonical_weights())

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, H * N) -> (B, H, T, N) in at least float32"""
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads.to(torch.promote_types(x.dtype, torch.float32))
