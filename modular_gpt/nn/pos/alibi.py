"""Attention with linear biases: https://arxiv.org/abs/2108.12409"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.contracts import Dims, Position, Positions
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import positive


class ALiBi(Position["ALiBi.Config"], name="alibi"):
    """Scores fall linearly with distance, with one slope per head; works past the trained length."""

    biases = True

    @dataclass
    class Config(ComponentConfig):
        """Settings of ALiBi.

        max_bias: Negative exponent of the last head's slope, which is 2^-max_bias.
        scale: Multiply the biases by this factor.
        rounded: Add slope times position of the key, rounded to bfloat16 as in Falcon, instead of minus slope times
            distance. Without the rounding, the two differ by a constant per query.
        """

        max_bias: float = 8.0
        scale: float = 1.0
        rounded: bool = False

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.config = config
        if config.rounded:
            self.slides = False  # rounding depends on positions, not on distances alone

    @classmethod
    def check(cls, config: Config, dims: Dims, rotary_width: int) -> None:
        positive("pos", max_bias=config.max_bias, scale=config.scale)

    def bias(self, pos: Positions, key_columns: Tensor, n_heads: int) -> Tensor:
        """The bias in float32, (1, H, T, S), or rounded (1 or B, H, T, S); computed once per forward pass."""
        config = self.config

        def make() -> Tensor:
            slope = torch.tensor(slopes(n_heads, config.max_bias), device=key_columns.device)[None, :, None, None]
            if config.rounded:
                bias = slope.bfloat16() * _key_positions(pos, key_columns).bfloat16()[:, None, None]
                return (bias.float() * config.scale).expand(-1, -1, pos.count, -1)
            distance = pos.columns[:, None] - key_columns[None, :]
            return -slope * distance if config.scale == 1.0 else -slope * distance * config.scale

        return pos.memo(("alibi", n_heads, key_columns.shape[0], config.max_bias, config.scale, config.rounded), make)


def _key_positions(pos: Positions, key_columns: Tensor) -> Tensor:
    """(1 or B, S) position of each key in its text or document; 0 for padding."""
    positions = key_columns[None]
    if pos.padding is not None:
        positions = positions - pos.padding[:, None]
    if pos.document_starts is not None:
        positions = positions - pos.document_starts[:, key_columns]
    return positions.clamp(min=0)


def slopes(n_heads: int, max_bias: float = 8.0) -> list[float]:
    """The slope of each head: a geometric sequence that ends at 2^-max_bias.

    If ``n_heads`` is not a power of two, the slopes of the next lower power come first, followed by every second slope
    of the next higher one.
    """

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-max_bias * (i + 1) / count) for i in range(count)]

    below = 2 ** math.floor(math.log2(n_heads))
    return geometric(below) + geometric(2 * below)[::2][: n_heads - below]
