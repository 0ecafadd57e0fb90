"""A check that the weights of an opened model are finite."""

import torch
from torch import nn

from modular_gpt.core.errors import NonFiniteError


@torch.no_grad()
def check_finite_weights(model: nn.Module, where: str) -> None:
    """Raise a NonFiniteError that names the first parameter with NaN or infinity; ``where``: the checkpoint's name.

    The logits do not always show it: PyTorch's attention on the CPU turns NaN queries into zeros.
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.element_size() == 1:
            continue
        # The sum needs no copy of the weights. That of large finite weights may be infinite, so each is checked then.
        if not bool(parameter.sum(dtype=torch.float32).isfinite()) and not bool(parameter.isfinite().all()):
            raise NonFiniteError(
                f"the weights of '{where}' are damaged: {name} is not finite (NaN or infinity); use another checkpoint"
            )
