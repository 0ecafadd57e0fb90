"""Where a training broke down: the first module that made a number which is not finite."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def first_not_finite(model: nn.Module, forward: Callable[[], Any]) -> str:
    """A phrase that names it.

    It is the first module in a repeated forward pass with a finite input and an output that is not; where all outputs
    are finite, the module nearest to the loss whose gradient, as it stands in ``grad``, is not.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f"the weight {name} is not finite"
    found: list[str] = []

    def look(name: str, kind: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(bool(t.isfinite().all()) for t in tensors(output)):
                found.append(f"the output of {name} ({kind}) is not finite")

        return hook

    handles = [
        module.register_forward_hook(look(name, type(module).__name__))
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.ModuleList)
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    return f"the gradient of {bad[-1]} is not finite" if bad else "the loss is not finite"


def tensors(value: Any) -> list[Tensor]:
    """All floating-point tensors in what a module returns."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in tensors(each)]
    return []
