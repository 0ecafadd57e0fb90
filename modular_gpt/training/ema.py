"""The exponential moving average of a model's weights (Polyak and Juditsky 1992, https://doi.org/10.1137/0330046)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modular_gpt.distributed.dtensor import local_tensor


class WeightAverage:
    """Follows the weights that are trained, in float32; buffers and frozen weights are the model's own.

    held: by parameter name, the average; while ``shown`` lends the model's place to it, the trained weights
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """The average starts as the weights are now."""
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.decay, self.parameters = decay, [parameter.detach() for parameter in trained.values()]
        self.held: dict[str, Tensor] = {name: p.detach().float().clone() for name, p in trained.items()}

    def update(self, step: int) -> None:
        """Take up the weights as the update of ``step`` (from 0) left them.

        Early averages forget faster, or the weights of the beginning would stay in them for long: the decay of a step
        is (1 + step) / (10 + step) until that is more than the wanted one.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        held = [local_tensor(average) for average in self.held.values()]
        torch._foreach_lerp_(held, [local_tensor(parameter) for parameter in self.parameters], 1 - decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Values change places one tensor at a time, in place: whoever holds a view of the weights sees the average."""
        for parameter, average in zip(self.parameters, self.held.values(), strict=True):
            before = parameter.clone()
            parameter.copy_(average)
            average.copy_(before)
