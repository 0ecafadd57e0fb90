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
        weight_offset: Scale by 1 + weight, where weight is stored around 0, as Nemotron does.
        """

        eps: float = 1e-5
        affine: bool = True
        bias: bool | None = None
        weight_offset: bool = False

        def __post_init__(self) -> None:
            positive("norm", eps=self.eps)

    def __init__(self, config: Config, width: int, bias: bool) -> None:
        super().__init__(config, width, bias)
        self.eps, self.weight_offset = config.eps, config.weight_offset
        self.width = (width,)
        self.weight = nn.Parameter(torch.empty(width)) if config.affine else None
        self.bias = nn.Parameter(torch.empty(width)) if config.affine and plain(config.bias) else None
        self.reset_parameters()

    @classmethod
    def resolved(cls, config: Config, bias: bool) -> Config:
        return filled(config, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        weight = self.weight + 1.0 if self.weight is not None and self.weight_offset else self.weight
        return F.layer_norm(x, self.width, weight, self.bias, self.eps)

    def canonical_weights(self) -> NormWeights | None:
        if self.weight is None:
            return None
        return NormWeights(self.weight.detach() + float(self.weight_offset), self.bias)

    @torch.no_grad()
    def init_from(self, source: NormWeights) -> TransferReport:
        if self.weight is None or source.scale.shape != self.weight.shape:
            return {}
        self.weight.copy_(source.scale - float(self.weight_offset))
        report = {"weight": "less 1" if self.weight_offset else ""}
        if self.bias is None or source.shift is None:
            return report
        self.bias.copy_(source.shift)
        return {**report, "bias": ""}

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.weight_offset else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.width[0]}, eps={self.eps}, bias={self.bias is not None}"
