"""Sinusoidal position embedding: https://arxiv.org/abs/1706.03762, section 3.5"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.contracts import Dims, Position, Positions
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import positive


class SinusoidalPosition(Position["SinusoidalPosition.Config"], name="sinusoidal"):
    """Fixed sines and cosines of geometric wavelengths, added to the token embeddings."""

    embeds = True
    slides = False

    @dataclass
    class Config(ComponentConfig):
        """Settings of sinusoidal positions.

        theta: Base of the wavelengths; the longest is 2 pi theta.
        """

        theta: float = 10000.0

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.theta = config.theta

    @classmethod
    def check(cls, config: Config, dims: Dims, rotary_width: int) -> None:
        positive("pos", theta=config.theta)
        if dims.d_model % 2:
            raise ConfigError(f"pos=sinusoidal pairs a sine with a cosine: d_model must be even, got {dims.d_model}")

    def embed(self, x: Tensor, pos: Positions) -> Tensor:
        """(B, T, D) -> (B, T, D); even dimensions get sines, odd ones cosines."""
        half = torch.arange(0, x.shape[-1], 2, device=x.device, dtype=torch.float32)
        angle = pos.index[..., None] * torch.exp(half * (-math.log(self.theta) / x.shape[-1]))
        return x + torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).to(x.dtype)
