"""Gated short convolutions in place of attention: LFM2, https://arxiv.org/abs/2511.23404

A token sees the last few tokens alone; other layers have to carry information further.
"""

from dataclasses import dataclass

import torch
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
from modular_gpt.core.short_convolution import causal_conv
from modular_gpt.core.validation import positive
from modular_gpt.nn.effective_weights import report_mix
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import shard_heads
from modular_gpt.nn.short_conv import ShortConv


class GatedShortConvolution(Attention["GatedShortConvolution.Config"], name="shortconv"):
    """Gated short convolution: each channel mixes its last few tokens, between two gates (LFM2)."""

    accepts_bias = False
    separates_documents = True
    sees_whole_window = False  # no further than its kernel
    reported = ("value", "weights", "heads")
    heads_are_channels = True

    @dataclass
    class Config(AttentionConfig):
        """Settings of the gated short convolution.

        kernel: Number of tokens that a channel sees, the token itself included.
        bias: Use biases in the projections and in the convolution. By default (null) the model's bias setting applies.
        """

        kernel: int = 3
        bias: bool | None = None

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        bias = plain(config.bias)
        self.input_gate, self.output_gate, self.value = (nn.Linear(dims.d_model, dims.d_model, bias) for _ in range(3))
        self.conv = ShortConv(dims.d_model, config.kernel, bias)
        self.out = residual_linear(dims.d_model, dims.d_model, bias)

    @classmethod
    def check(cls, config: Config, dims: Dims, position: type[Position]) -> None:
        super().check(config, dims, position)
        positive("attention", kernel=config.kernel)

    @classmethod
    def resolved(cls, config: Config, dims: Dims, position: type[Position]) -> Config:
        return filled(config, bias=dims.bias)

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return 0

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        return CacheSpec(states=((dims.d_model, config.kernel - 1),))

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        input_gate, output_gate, value = fused_linear(x, (self.input_gate, self.output_gate, self.value), self.training)
        value, state = input_gate * value, None if cache is None else cache.tensors[0]
        mixed, state = self._observed(value, pos, state) if is_observed() else self.conv(value, pos, state)
        if cache is not None:
            cache.tensors[0].copy_(state)
        out: Tensor = self.out(output_gate * mixed)
        return out

    def _observed(self, value: Tensor, pos: Positions, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The convolution, reported as attention whose heads are channels of width 1."""
        taps = self.conv.weight[self.conv.local_channels]
        heads = report("attention.value", _heads_of_channels(value))
        value = heads[..., 0].transpose(1, 2)
        mixed, after = causal_conv(value, taps, pos, state)
        mixed = report_mix(
            _heads_of_channels(mixed),
            heads,
            lambda: _tap_weights(taps, pos).expand(len(value), -1, -1, -1),
            lambda: _heads_of_channels(causal_conv(torch.zeros_like(value), taps, pos, state)[0]),
        )
        return self.conv.add_bias(mixed[..., 0].transpose(1, 2)), after

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        self.conv.local_channels = shard_heads(rank, world_size, d_model=self.out.in_features)
        return {"input_gate": COLUMNS, "output_gate": COLUMNS, "value": COLUMNS, "conv": SHARED, "out": ROWS}


def _heads_of_channels(x: Tensor) -> Tensor:
    """(B, T, C) -> (B, C, T, 1)"""
    return x.transpose(1, 2)[..., None]


def _tap_weights(taps: Tensor, pos: Positions) -> Tensor:
    """taps (C, kernel) -> (1 or B, C, T, T): the tap that weighs each token, 0 beyond the kernel or the document."""
    tokens = torch.arange(pos.count, device=taps.device)
    distance = tokens[:, None] - tokens
    width = taps.shape[1]
    seen = ((distance >= 0) & (distance < width))[None, None]
    valid, starts = pos.valid(), pos.document_starts
    if valid is not None:
        seen = seen & valid[:, None, None]
    if starts is not None:
        seen = seen & (starts[:, None, :, None] == starts[:, None, None])
    return taps[:, (width - 1 - distance).clamp(0, width - 1)].masked_fill(~seen, 0.0)
