"""Normalisation of queries and keys: https://arxiv.org/abs/2010.04245"""

from typing import Any

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Norm
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import decode, encode
from modular_gpt.nn.matrices import mark_no_matrix
from modular_gpt.nn.norm import inner_norm

SCOPES = ("head", "per_head", "full")


class PerHeadNorm(nn.Module):
    """A norm of each head, with separate weights for each (Cohere, StableLM)."""

    def __init__(self, norm: Any, heads: int, width: int) -> None:
        super().__init__()
        self.norm = inner_norm({**norm, "affine": False}, width)
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.local_heads = slice(None)  # the heads that this process computes
        mark_no_matrix(self, "weight")

    def forward(self, x: Tensor) -> Tensor:
        """(B, heads, T, N) -> the same shape"""
        normed: Tensor = self.norm(x)
        return normed * self.weight[self.local_heads, None].to(normed.dtype)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)


def resolved_norm(norm: Any, eps: float) -> PlainDict | None:
    """All settings of a norm given by name or as a mapping; None for None.

    eps: the eps of a mapping without one

    Raises:
        ConfigError: the name or a setting is unknown.
    """
    if norm is None:
        return None
    settings = {"name": norm} if isinstance(norm, str) else norm
    if not isinstance(settings, dict):
        raise ConfigError(f"attention.qk_norm must be the name of a norm, or a mapping with a name, got {norm!r}")
    config = decode("norm", {"eps": eps, **settings})
    component: type[Norm] = Norm.of(config)
    return encode(component.resolved(config, False))


def build_norm(norm: PlainDict | None, scope: str, heads: int, width: int) -> nn.Module | None:
    """Build the norm of queries or keys (B, heads, T, width); None if ``norm`` is None.

    Raises:
        ConfigError: ``scope`` is per_head, and the norm has no weights or a bias.
    """
    if norm is None:
        return None
    if scope != "per_head":
        return inner_norm(norm, heads * width if scope == "full" else width)
    plain_weight = norm.get("affine", False) and not norm.get("bias") and not norm.get("weight_offset")
    if not plain_weight:
        raise ConfigError("attention.qk_norm_scope=per_head needs a norm with weights and without bias: use layernorm")
    return PerHeadNorm(norm, heads, width)
