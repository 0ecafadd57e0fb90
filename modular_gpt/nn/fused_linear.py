"""Several linear layers on the same input, computed by one matrix product where that is faster."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiling_for_cpu(x: Tensor, training: bool) -> bool:
    """Whether torch.compile is tracing this call for training on a CPU."""
    return training and x.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def has_hooks(layer: nn.Module) -> bool:
    """Whether ``layer`` has hooks, which computing with its weight directly would skip."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


def fused_linear(x: Tensor, layers: tuple[nn.Linear, ...], training: bool) -> tuple[Tensor, ...]:
    """The outputs of several linear layers on the same input x (..., D), as a tuple.

    In compiled training on a CPU, x is multiplied once by the concatenated weights: products are fewer and larger in
    both passes, and the compiler fuses the concatenation with the cast. In all other cases, and if a layer is wrapped,
    has hooks or is a distributed tensor, the layers are called one by one.
    """
    plain = all(
        type(layer) is nn.Linear and (layer.bias is None) == (layers[0].bias is None) and not has_hooks(layer)
        for layer in layers
    )
    if not plain or not compiling_for_cpu(x, training) or hasattr(layers[0].weight, "placements"):
        return tuple(layer(x) for layer in layers)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    outputs = F.linear(x, torch.cat([layer.weight for layer in layers]), bias)
    out: tuple[Tensor, ...] = outputs.split([layer.weight.shape[0] for layer in layers], dim=-1)
    return out
