"""Scale normalisation: https://arxiv.org/abs/1910.05895"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Norm
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import positive
from modular_gpt.core.weight_transfer import NormWeights, TransferReport


class ScaleNorm(Norm["ScaleNorm.Config"], name="scalenorm"):
    """Divide by the Euclidean length, then scale by one learned number, sqrt(width) at first."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of ScaleNorm.

        eps: Smallest norm that a vector is divided by.
        affine: Learn a scale.
        """

        eps: float = 1e-5
        affine: bool = True

        def __post_init__(self) -> None:
            positive("norm", eps=self.eps)

    def __init__(self, config: Config, width: int, bias: bool = False) -> None:
        super().__init__(config, width, bias)
        self.eps = config.eps
        self.width = width
        self.initial_scale = math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(1)) if config.affine else None
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        wide = torch.promote_types(x.dtype, torch.float32)  # squares overflow in half precision
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).clamp(min=self.eps)
        scale = self.initial_scale if self.weight is None else self.weight
        out: Tensor = x * (scale / length).to(x.dtype)
        return out

    def canonical_weights(self) -> NormWeights | None:
        if self.weight is None:
            return None
        return NormWeights((self.weight.detach() / self.initial_scale).expand(self.width))

    @torch.no_grad()
    def init_from(self, source: NormWeights) -> TransferReport:
        if self.weight is None or source.scale.shape != (self.width,):
            return {}
        self.weight.fill_(self.initial_scale * source.scale.mean())
        return {"weight": "the mean"}

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, self.initial_scale)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
