"""Gated short convolutions in place of attention: LFM2, https://arxiv.org/abs/2511.23404

A token sees the last few tokens alone; other layers have to carry information further. The cheapest mixer there is.
"""

from dataclasses import dataclass

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
from modular_gpt.core.registry import filled, plain
from modular_gpt.core.validation import positive
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.sdpa import shard_heads
from modular_gpt.nn.short_conv import ShortConv


class GatedShortConvolution(Attention["GatedShortConvolution.Config"], name="shortconv"):
    """Gated short convolution: each channel mixes its last few tokens, between two gates (LFM2)."""

    accepts_bias = False
    separates_documents = True
    sees_whole_window = False  # no further than its kernel
    reported = ()

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
        before, after, value = fused_linear(x, (self.input_gate, self.output_gate, self.value), self.training)
        mixed, state = self.conv(before * value, pos, None if cache is None else cache.tensors[0])
        if cache is not None:
            cache.tensors[0].copy_(state)
        out: Tensor = self.out(after * mixed)
        return out

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        self.conv.local_channels = shard_heads(rank, world_size, d_model=self.out.in_features)
        return {"input_gate": COLUMNS, "output_gate": COLUMNS, "value": COLUMNS, "conv": SHARED, "out": ROWS}
