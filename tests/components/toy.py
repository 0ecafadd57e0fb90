"""A user-defined attention in one file: the mean of all tokens so far. ``test_toy.py`` copies it into the package."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from modular_gpt.core.cache import CacheSpec, LayerCache, StateCache
from modular_gpt.core.contracts import Attention, AttentionConfig, Dims, Position, Positions
from modular_gpt.nn.residual import residual_linear


class RunningMean(Attention, name="toy"):
    """The mean of all tokens so far."""

    accepts_bias = False

    @dataclass
    class Config(AttentionConfig):
        """width null: d_model; last: whether a token counts itself twice."""

        width: int | None = None
        last: bool = False

    def __init__(self, config: Config, dims: Dims, position: Position) -> None:
        super().__init__(config, dims, position)
        self.last = config.last
        width = _width(config, dims)
        self.value = nn.Linear(dims.d_model, width, dims.bias)
        self.out = residual_linear(width, dims.d_model, dims.bias)

    @classmethod
    def rotary_width(cls, config: Config, dims: Dims, position: type[Position]) -> int:
        return _width(config, dims)

    @classmethod
    def cache_spec(cls, config: Config, dims: Dims, position: type[Position]) -> CacheSpec:
        return CacheSpec(states=((_width(config, dims),), (1,)))

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        value = self.value(x).float()
        value = self.position.rotate(value[:, None], pos)[:, 0]
        valid = pos.valid()
        one = torch.ones_like(value[..., :1]) if valid is None else valid[..., None].float()
        total, count = (value * one).cumsum(1), one.cumsum(1)
        if cache is not None:
            kept_total, kept_count = cast(StateCache, cache).tensors
            total, count = total + kept_total[:, None], count + kept_count[:, None]
            kept_total.copy_(total[:, -1])
            kept_count.copy_(count[:, -1])
        mean = (total + value * one) / (count + 1) if self.last else total / count.clamp(min=1)
        return self.out(mean.to(x.dtype))


def _width(config: RunningMean.Config, dims: Dims) -> int:
    return dims.d_model if config.width is None else config.width
