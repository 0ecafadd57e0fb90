"""Linear layers that read the same input, by one product where that is quicker."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def compiling_for_cpu(x: Tensor, training: bool) -> bool:
    """Whether this call is traced by torch.compile to train on a CPU."""
    return training and x.device.type == "cpu" and torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def fused_linear(x: Tensor, layers: tuple[nn.Linear, ...], training: bool) -> tuple[Tensor, ...]:
    """(..., D) -> what each layer makes of it.

    In compiled training on a CPU by one product with all weights side by side: fewer calls of more work, forwards and
    backwards, and the compiler puts the weights there as it rounds them. Layers that are not plain ones are called.
    """
    plain = all(type(each) is nn.Linear and (each.bias is None) == (layers[0].bias is None) for each in layers)
    if not plain or not compiling_for_cpu(x, training) or hasattr(layers[0].weight, "placements"):
        return tuple(each(x) for each in layers)
    bias = None if layers[0].bias is None else torch.cat([each.bias for each in layers])
    whole = F.linear(x, torch.cat([each.weight for each in layers]), bias)
    return whole.split([each.weight.shape[0] for each in layers], dim=-1)
