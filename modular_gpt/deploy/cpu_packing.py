"""Packing of the weights of linear layers for fast inference on a CPU.

oneDNN multiplies faster if a weight has the blocked memory layout of its kernels; packing converts each weight once
instead of at every call. Each ``nn.Linear`` of the model is replaced by a ``PackedLinear`` that computes the same
product. A packed model is for inference only.
"""

from typing import cast

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.model import GPTModel


class PackedLinear(nn.Module):
    """x @ weight.T + bias with the weight in oneDNN's blocked layout: (..., in) -> (..., out)."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # plain attributes, not buffers: a tensor in blocked layout can neither be moved nor saved
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def can_pack(model: GPTModel) -> bool:
    """Whether ``model`` can be packed: on a CPU with oneDNN, in float32 or bfloat16."""
    weight = model.embedding.weight
    return weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and weight.dtype in _DTYPES


_DTYPES = (torch.float32, torch.bfloat16)


def pack(model: GPTModel) -> GPTModel:
    """Pack every linear layer of ``model`` and its head in place; returns the model in evaluation mode.

    Raises:
        ConfigError: the model is not on a CPU with oneDNN, or is neither float32 nor bfloat16.
    """
    if not can_pack(model):
        raise ConfigError("packing is for float32 and bfloat16 models on a CPU with oneDNN")
    model.eval().requires_grad_(False)
    if model.head is None:  # a tied head gets a packed copy; the embedding keeps the plain weight for look-ups
        model.head = cast(nn.Linear, PackedLinear(model.embedding.weight, None))
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:  # weights of subclasses, such as ReadLinear, are also read directly
                setattr(module, name, PackedLinear(child.weight, child.bias))
    return model
