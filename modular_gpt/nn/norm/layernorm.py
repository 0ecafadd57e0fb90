"""Layer normalisation: https://arxiv.org/abs/1607.06450"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.contracts import Norm
from modular_gpt.core.registry import ComponentConfig, filled, plain
from modular_gpt.core.validation import positive
from modular_gpt.core.weight_transfer import NormWeights, TransferReport


class LayerNorm(Norm["LayerNorm.Config"], name="layernorm"):
    """Subtract the mean, divide by the standard deviation, then scale and shift (GPT-2)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of LayerNorm.

        eps: Added to the variance.
        affine: Learn a scale.
        bias: Learn a bias. By default (null) the model's bias setting applies.
        """

        eps: float = 1e-5
        affine: bool = True
        bias: bool | None = None

        def __post_init__(self) -> None:
            positive("norm", eps=self.eps)

    def __init__(self, config: Config, width: int, bias: bool) -> None:
        super().__init__(config, width, bias)
        self.eps = config.eps
        self.width = (width,)
        self.weight = nn.Parameter(torch.empty(width)) if config.affine else None
        self.bias = nn.Parameter(torch.empty(width)) if config.affine and plain(config.bias) else None
        self.reset_parameters()

    @classmethod
    def resolved(cls, config: Config, bias: bool) -> Config:
        return filled(config, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        return F.layer_norm(x, self.width, self.weight, self.bias, self.eps)

    def canonical_weights(self) -> NormWeights | None:
        return None if self.weight is None else NormWeights(self.weight.detach(), self.bias)

    @torch.no_grad()
    def init_from(self, source: NormWeights) -> TransferReport:
        if self.weight is None or source.scale.shape != self.weight.shape:
            return {}
        self.weight.copy_(source.scale)
        if self.bias is None or source.shift is None:
            return {"weight": ""}
        self.bias.copy_(source.shift)
        return {"weight": "", "bias": ""}

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.width[0]}, eps={self.eps}, bias={self.bias is not None}"
