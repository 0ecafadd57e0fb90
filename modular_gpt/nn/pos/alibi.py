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
        """

        max_bias: float = 8.0

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.config = config

    @classmethod
    def check(cls, config: Config, dims: Dims, rotary_width: int) -> None:
        positive("pos", max_bias=config.max_bias)

    def bias(self, pos: Positions, key_columns: Tensor, n_heads: int) -> Tensor:
        """(1, H, T, S) in float32: minus slope times distance; computed once per forward pass for all layers."""

        def make() -> Tensor:
            distance = pos.columns[:, None] - key_columns[None, :]
            slope = torch.tensor(slopes(n_heads, self.config.max_bias), device=distance.device)
            return -slope[None, :, None, None] * distance

        return pos.memo(("alibi", n_heads, key_columns.shape[0], self.config.max_bias), make)


def slopes(n_heads: int, max_bias: float = 8.0) -> list[float]:
    """The slope of each head: a geometric sequence that ends at 2^-max_bias.

    If ``n_heads`` is not a power of two, the slopes of the next lower power come first, followed by every second slope
    of the next higher one.
    """

    def geometric(count: int) -> list[float]:
        return [2.0 ** (-max_bias * (i + 1) / count) for i in range(count)]

    below = 2 ** math.floor(math.log2(n_heads))
    return geometric(below) + geometric(2 * below)[::2][: n_heads - below]
