"""Root mean square normalisation: https://arxiv.org/abs/1910.07467"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.collectives import ShardGroup
from modular_gpt.core.contracts import Norm
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import positive
from modular_gpt.core.weight_transfer import NormWeights, TransferReport


class RMSNorm(Norm["RMSNorm.Config"], name="rmsnorm"):
    """Divide by the root mean square, then scale (Llama)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of RMSNorm.

        eps: Added to the mean square.
        affine: Learn a scale.
        weight_offset: Scale by 1 + weight, where weight is stored around 0, as Gemma does.
        """

        eps: float = 1e-5
        affine: bool = True
        weight_offset: bool = False

        def __post_init__(self) -> None:
            positive("norm", eps=self.eps)

    def __init__(self, config: Config, width: int, bias: bool = False) -> None:
        super().__init__(config, width, bias)
        self.eps = config.eps
        self.width = (width,)
        self.weight_offset = config.weight_offset
        self.weight = nn.Parameter(torch.empty(width)) if config.affine else None
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        if self.weight is not None and self.weight_offset:
            scaled = F.rms_norm(x.float(), self.width, 1.0 + self.weight.float(), self.eps)
            return scaled.to(x.dtype)
        return F.rms_norm(x, self.width, self.weight, self.eps)

    def over_shards(self, x: Tensor, shards: ShardGroup) -> Tensor:
        """(..., width / n) -> the same shape: a shard of vectors, normalised by the mean squares of the full vectors.

        The weight, which all processes hold, has the parallel style ``SHARED``.
        """
        square = x.float().square().sum(-1, keepdim=True)
        mean = shards.copied(shards.summed(square)) / self.width[0]
        normed = x.float() * (mean + self.eps).rsqrt()
        if self.weight is not None:
            first, last = shards.bounds(self.width[0])
            normed = normed * (self.weight[first:last].float() + float(self.weight_offset))
        return normed.to(x.dtype)

    def canonical_weights(self) -> NormWeights | None:
        return None if self.weight is None else NormWeights(self.weight.detach() + float(self.weight_offset))

    @torch.no_grad()
    def init_from(self, source: NormWeights) -> TransferReport:
        if self.weight is None or source.scale.shape != self.weight.shape:
            return {}
        self.weight.copy_(source.scale - float(self.weight_offset))
        return {"weight": "less 1" if self.weight_offset else ""}

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.weight_offset else 1.0)

    def extra_repr(self) -> str:
        return f"{self.width[0]}, eps={self.eps}"
