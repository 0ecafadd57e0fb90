"""Query temperature by position, with which scores grow slowly in texts beyond a length (Llama 4, Ministral 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.contracts import Positions
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.validation import from_mapping, not_negative, positive


@dataclass(frozen=True)
class QueryTemperature:
    """Multiply queries by 1 + beta * ln(1 + floor((position + shift) / length)).

    beta: Growth of the factor per unit of the logarithm.
    length: Number of positions before the factor first grows.
    shift: Number added to positions.
    """

    beta: float = 0.1
    length: float = 8192.0
    shift: int = 0

    @classmethod
    def read(cls, settings: PlainMapping) -> "QueryTemperature | None":
        """Read the settings of an attention; None if they are empty.

        Raises:
            ConfigError: a setting is unknown or out of range.
        """
        if not settings:
            return None
        temperature = from_mapping(cls, settings, "attention.query_temperature")
        positive("attention.query_temperature", length=temperature.length)
        not_negative("attention.query_temperature", beta=temperature.beta, shift=temperature.shift)
        return temperature

    def __call__(self, q: Tensor, pos: Positions) -> Tensor:
        """(B, H, T, N) -> the same shape"""
        factor = pos.memo(("query temperature", self), lambda: self._factor(pos))
        return q * factor.to(q.dtype)

    def _factor(self, pos: Positions) -> Tensor:
        """The factor on each query, (B or 1, 1, T, 1)."""
        steps = torch.floor((pos.index.clamp(min=0).float() + self.shift) / self.length)
        return (1 + self.beta * torch.log1p(steps))[:, None, :, None]
