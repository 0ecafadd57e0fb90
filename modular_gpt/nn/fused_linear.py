"""Linear layers that read the same input, by one product where that is quicker."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiling_for_cpu(x: Tensor, training: bool) -> bool:
    """Whether this call is traced by torch.compile to train on a CPU."""
    return training and x.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def has_hooks(layer: nn.Module) -> bool:
    """Whether calling ``layer`` runs hooks, which computing with its weight directly would skip."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks)


def fused_linear(x: Tensor, layers: tuple[nn.Linear, ...], training: bool) -> tuple[Tensor, ...]:
    """The outputs of several linear layers on one input x (..., D), as a tuple.

    Compiled training on a CPU multiplies once by the concatenated weights: fewer and larger products in both passes,
    and the compiler concatenates while it casts. A layer that is wrapped or has hooks is called instead.
    """
    plain = all(
        type(layer) is nn.Linear and (layer.bias is None) == (layers[0].bias is None) and not has_hooks(layer)
        for layer in layers
    )
    if not plain or not compiling_for_cpu(x, training) or hasattr(layers[0].weight, "placements"):
        return tuple(each(x) for each in layers)
    bias = None if layers[0].bias is None else torch.cat([each.bias for each in layers])
    whole = F.linear(x, torch.cat([each.weight for each in layers]), bias)
    return whole.split([each.weight.shape[0] for each in layers], dim=-1)
