"""The cause of a loss or gradient that is not finite: the first module that produced one."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from modular_gpt.distributed import Parallel
from modular_gpt.distributed.dtensor import local_tensor


def find_first_nonfinite(model: nn.Module, forward: Callable[[], object], parallel: Parallel) -> str:
    """Describe, in a phrase, the first module with a non-finite output or gradient.

    The forward pass is repeated: the first module with a finite input and a non-finite output is named, or else the
    module closest to the loss whose gradient in ``grad`` is not finite. All processes return the same phrase.
    """

    def bad(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
        return [name for name, tensor in tensors if not bool(local_tensor(tensor).isfinite().all())]

    everywhere = parallel.processes.all_gather
    weights = [name for name in everywhere(next(iter(bad(model.named_parameters())), "")) if name]
    if weights:
        return f"the weight {weights[0]} is not finite"
    outputs = [name for name in everywhere(first_output_not_finite(model, forward)) if name]
    if outputs:
        return f"the output of {outputs[0]} is not finite"
    gradients = bad((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
    names = [name for name, _ in model.named_parameters()]
    last = max(names.index(name) if name else -1 for name in everywhere(gradients[-1] if gradients else ""))
    return f"the gradient of {names[last]} is not finite" if last >= 0 else "the loss is not finite"


def first_output_not_finite(model: nn.Module, forward: Callable[[], object]) -> str:
    """The name and type of the first module in a forward pass whose output is not finite; empty for none."""
    found: list[str] = []

    def look(name: str, type_name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and not all(bool(t.isfinite().all()) for t in tensors(output)):
                found.append(f"{name} ({type_name})")

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
    return found[0] if found else ""


def tensors(value: object) -> list[Tensor]:
    """All floating-point tensors in the output of a module."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors(item)]
    return []
