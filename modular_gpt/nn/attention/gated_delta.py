"""Gated DeltaNet (https://arxiv.org/abs/2412.06464) and Kimi Delta Attention (https://arxiv.org/abs/2510.26692).

Each value head keeps one matrix that maps keys to values. At each token the matrix decays, the value stored under the
token's key is replaced, and the value under its query is read (``nn/delta_rule.py``). In Kimi's variant the channels of
a key decay separately.
"""

import math
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
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.observer import is_observed, report
from modular_gpt.core.registry import Preset, filled, plain
from modular_gpt.core.validation import one_of, positive
from modular_gpt.core.weight_transfer import AttentionWeights, TransferReport
from modular_gpt.nn.activations import ACTIVATIONS
from modular_gpt.nn.delta_rule import delta_rule
from modular_gpt.nn.effective_weights import report_mix, unit_values
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.norm.rmsnorm import RMSNorm
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import shard_heads
from modular_gpt.nn.short_conv import ShortConv
from modular_gpt.nn.weight_transfer import head_weights, init_heads

_L2_EPS = 1e-6  # in all published models; the eps of their configs is that of other norms
_OUTPUT_GATES = {"silu": ACTIVATIONS["silu"], "sigmoid": torch.sigmoid}
_TIME_STEPS = (1e-3, 1e-1)  # range of softplus(decay_offset) at the start, as in Mamba, arXiv 2312.00752


class GatedDeltaNet(
    Attention["GatedDeltaNet.Config"],
    name="gated_delta",
    presets={
        "kda": Preset(
            "Kimi delta attention: a gated delta rule in which the channels of a key decay separately.",
            {"per_channel": True, "gate_activation": "sigmoid"},
        ),
    },
):
    """Gated delta rule: a memory per head that decays and corrects itself, of constant size (Qwen3-Next)."""

    accepts_bias = False
    separates_documents = True
    only_speed = ("chunk",)
    reported = ("query", "key", "value", "weights", "heads")

    @dataclass
    class Config(AttentionConfig):
        """Settings of the gated delta rule.

        value_heads: Number of value heads, each with a memory. By default (null) n_heads.
        key_heads: Number of query and key heads, which divides value_heads. By default (null) value_heads.
        key_dim: Width of a query or key head. By default (null) d_model / n_heads.
        value_dim: Width of a value head. By default (null) d_model / n_heads.
        kernel: Number of tokens that the convolution of queries, keys and values sees.
        per_channel: Compute a decay for each channel of a key (Kimi) instead of one for each head.
        rank: Rank of the projections to the decays and to the output gate. By default (null) they have full rank.
        negative: Allow rates up to 2 instead of 1, with which a token reverses the value stored under its key.
        gate_activation: Activation of the output gate: silu or sigmoid.
        chunk: Number of tokens computed at once. It changes speed, not results.
        eps: The eps of the norm of each head before the output gate.
        """

        value_heads: int | None = None
        key_heads: int | None = None
        key_dim: int | None = None
        value_dim: int | None = None
        kernel: int = 4
        per_channel: bool = False
        rank: int | None = None
        negative: bool = False
        gate_activation: str = "silu"
        chunk: int = 64
        eps: float = 1e-6

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.config = config
        self.value_heads, self.key_heads = plain(config.value_heads), plain(config.key_heads)
        self.key_dim, self.value_dim = plain(config.key_dim), plain(config.value_dim)
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        decays = self.value_heads * (self.key_dim if config.per_channel else 1)
        width = dims.d_model
        self.query = nn.Linear(width, keys, bias=False)
        self.key = nn.Linear(width, keys, bias=False)
        self.value = nn.Linear(width, values, bias=False)
        self.rate = nn.Linear(width, self.value_heads, bias=False)
        self.gate_down = None if config.rank is None else nn.Linear(width, config.rank, bias=False)
        self.gate = nn.Linear(config.rank or width, values, bias=False)
        self.decay_down = None if config.rank is None else nn.Linear(width, config.rank, bias=False)
        self.decay = nn.Linear(config.rank or width, decays, bias=False)
        self.query_conv, self.key_conv, self.value_conv = (ShortConv(n, config.kernel) for n in (keys, keys, values))
        self.log_decay = nn.Parameter(torch.empty(self.value_heads))
        self.decay_offset = nn.Parameter(torch.empty(decays))
        self.norm = RMSNorm(RMSNorm.Config(name="rmsnorm", eps=config.eps), self.value_dim)
        self.out = residual_linear(values, width, bias=False)
        self.local_heads = slice(None)  # the value heads that this process computes
        self.reset_parameters()

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        positive("attention", value_heads=config.value_heads, key_heads=config.key_heads, key_dim=config.key_dim)
        positive("attention", value_dim=config.value_dim, kernel=config.kernel, rank=config.rank, chunk=config.chunk)
        positive("attention", eps=config.eps)
        one_of(config.gate_activation, tuple(_OUTPUT_GATES), "attention.gate_activation")
        if plain(config.value_heads) % plain(config.key_heads):
            raise ConfigError(
                f"attention.value_heads={config.value_heads} does not divide into attention.key_heads="
                f"{config.key_heads}; change one"
            )

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        widths = {}
        for name in ("key_dim", "value_dim"):
            widths[name] = dims.head_dim(f"attention.{name}") if getattr(config, name) is None else None
        config = filled(config, value_heads=dims.n_heads, **widths)
        return filled(config, key_heads=config.value_heads)

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return 0

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        value_heads, key_dim, value_dim = plain(config.value_heads), plain(config.key_dim), plain(config.value_dim)
        keys, values = plain(config.key_heads) * key_dim, value_heads * value_dim
        inputs = tuple((channels, config.kernel - 1) for channels in (keys, keys, values))
        return CacheSpec(states=((value_heads, key_dim, value_dim), *inputs))

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        states = [None] * 4 if cache is None else cache.tensors
        projected = fused_linear(x, (self.query, self.key, self.value), self.training)
        convs = (self.query_conv, self.key_conv, self.value_conv)
        mixed = [conv(x, pos, state) for conv, x, state in zip(convs, projected, states[1:], strict=True)]
        q, k = (self._unit(x, self.key_dim) for x, _ in mixed[:2])
        q, k = report("attention.query", q * self.key_dim**-0.5), report("attention.key", k)
        v = report("attention.value", self._heads(F.silu(mixed[2][0]), self.value_dim))
        gates = self._gates(x, pos)
        chunk, starts = self.config.chunk, pos.document_starts
        read, memory = delta_rule(q, k, v, gates, states[0], chunk, starts)
        if is_observed():
            read = report_mix(
                read,
                v,
                lambda: delta_rule(q, k, unit_values(q), gates, None, chunk, starts)[0],
                lambda: delta_rule(q, k, torch.zeros_like(v), gates, states[0], chunk, starts)[0],
            )
        if cache is not None:
            for kept, new in zip(cache.tensors, (memory, *(state for _, state in mixed)), strict=True):
                kept.copy_(new)
        read = self.norm(read.transpose(1, 2).to(x.dtype))
        gate = self.gate(x if self.gate_down is None else self.gate_down(x))
        gated = read.flatten(2) * _OUTPUT_GATES[self.config.gate_activation](gate)
        out: Tensor = self.out(gated)
        return out

    def _heads(self, x: Tensor, width: int) -> Tensor:
        """(B, T, heads * width) -> (B, heads, T, width) in at least float32"""
        heads: Tensor = x.unflatten(-1, (-1, width)).transpose(1, 2)
        return heads.to(torch.promote_types(x.dtype, torch.float32))

    def _unit(self, x: Tensor, width: int) -> Tensor:
        """Queries or keys (B, T, heads * width) -> unit vectors (B, value heads, T, width)."""
        heads = self._heads(F.silu(x), width)
        heads = heads * (heads.square().sum(-1, keepdim=True) + _L2_EPS).rsqrt()
        return heads.repeat_interleave(self.value_heads // self.key_heads, dim=1)

    def _gates(self, x: Tensor, pos: Positions) -> tuple[Tensor, Tensor]:
        """The logarithm of the decay (B, H, T, N or 1) and the rate (B, H, T, 1) of each token; 0 for padding."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        rate = self.rate(x).to(dtype).sigmoid() * (2.0 if self.config.negative else 1.0)
        steps = self.decay(x if self.decay_down is None else self.decay_down(x)).to(dtype)
        offset = self.decay_offset.to(dtype).unflatten(0, (self.value_heads, -1))[self.local_heads]
        steps = F.softplus(steps.unflatten(-1, offset.shape) + offset)
        log_decay = -self.log_decay.to(dtype).exp()[self.local_heads, None] * steps  # (B, T, H, N or 1)
        valid = pos.valid()
        if valid is not None:
            rate, log_decay = rate * valid[..., None], log_decay * valid[..., None, None]
        return log_decay.transpose(1, 2), rate.transpose(1, 2)[..., None]

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        counts = {"attention.value_heads": self.value_heads, "attention.key_heads": self.key_heads}
        self.local_heads = shard_heads(rank, world_size, **counts)
        for conv in (self.query_conv, self.key_conv, self.value_conv):
            conv.local_channels = shard_heads(rank, world_size, channels=len(conv.weight))
        columns: dict[str, ParallelStyle] = dict.fromkeys(("query", "key", "value", "gate", "rate", "decay"), COLUMNS)
        convs = ("query_conv", "key_conv", "value_conv")
        shared: dict[str, ParallelStyle] = dict.fromkeys((*convs, "log_decay", "decay_offset", "norm"), SHARED)
        return {**columns, **shared, "out": ROWS}

    def canonical_weights(self) -> AttentionWeights | None:
        """The projections; None if the numbers of key and value heads differ."""
        if self.key_heads != self.value_heads:
            return None
        return head_weights(self, self.key_dim, self.value_dim, scale=1.0)

    @torch.no_grad()
    def init_from(self, source: AttentionWeights) -> TransferReport:
        """Copy the projections; the outputs still differ from softmax attention until the model is trained."""
        present = self.canonical_weights()
        return {} if present is None else init_heads(self, replace(source, scale=1.0), present)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Decay rates from 1 to 16 by head, and time steps evenly spaced in their logarithm."""
        device = self.log_decay.device
        self.log_decay.copy_(torch.linspace(1.0, 16.0, self.value_heads, device=device).log())
        low, high = (math.log(step) for step in _TIME_STEPS)
        steps = torch.linspace(low, high, len(self.decay_offset), device=device).exp()
        if self.config.per_channel:  # every head gets the full range
            steps = steps.view(-1, self.value_heads).t().flatten()
        self.decay_offset.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus
