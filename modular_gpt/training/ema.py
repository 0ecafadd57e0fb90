"""The exponential moving average of a model's weights (Polyak and Juditsky 1992, https://doi.org/10.1137/0330046)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modular_gpt.distributed.dtensor import local_tensor


class WeightAverage:
    """Exponential moving average, in float32, of the trained weights; buffers and frozen weights are not averaged.

    held: the average by parameter name; inside ``shown``, the trained weights
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start the average at the current weights."""
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.decay, self.parameters = decay, [parameter.detach() for parameter in trained.values()]
        self.held: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in trained.items()}

    def update(self, step: int) -> None:
        """Update the average with the weights after step ``step``, counted from 0.

        The decay is min(decay, (1 + step) / (10 + step)), so that the average does not retain the initial weights for
        long.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        held = [local_tensor(average) for average in self.held.values()]
        torch._foreach_lerp_(held, [local_tensor(parameter) for parameter in self.parameters], 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Context manager: the model holds the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap the average and the weights in place, one tensor at a time; views of the weights see the average."""
        for parameter, average in zip(self.parameters, self.held.values(), strict=True):
            before = parameter.clone()
            parameter.copy_(average)
            average.copy_(before)
