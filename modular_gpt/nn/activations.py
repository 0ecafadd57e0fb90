"""Activation functions by the names that configs use."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def relu_squared(x: Tensor) -> Tensor:
    """relu(x)^2: https://arxiv.org/abs/2109.08668"""
    return F.relu(x).square()


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, as in GPT-2: https://arxiv.org/abs/1606.08415"""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu2": relu_squared,
    "silu": F.silu,
}
CLAMPED = "clamped_swish"
GATES = (*ACTIVATIONS, CLAMPED)


def gated(activation: str, gate: Tensor, up: Tensor, limit: float = 7.0, alpha: float = 1.702) -> Tensor:
    """activation(gate) * up; ``clamped_swish`` is the bounded form of https://arxiv.org/abs/2508.10925.

    limit, alpha: bound and slope of ``clamped_swish``
    """
    if activation == CLAMPED:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (up + 1)
    return ACTIVATIONS[activation](gate) * up
