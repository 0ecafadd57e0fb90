"""The model as a training runs it: on its device, in its precision, compiled where that is wished."""

from typing import cast

import torch
from torch import Tensor, nn

from modular_gpt.loss import PLAIN, LossOutput, LossSettings
from modular_gpt.model import GPTModel
from modular_gpt.training.hardware import autocast
from modular_gpt.training.parallel import Parallel


class Forward:
    """``forward(ids, targets)`` is the loss and its parts; both are (B, T) and may lie on the CPU."""

    def __init__(self, model: GPTModel, precision: str, compile: bool, parallel: Parallel) -> None:
        """precision: one of ``PRECISIONS`` but ``auto``; compile: let torch.compile generate code.

        parallel: takes gradients from other processes too
        """
        self.model, self.precision = model, precision
        self.device = next(model.parameters()).device
        self.module = parallel.wrap(cast(nn.Module, torch.compile(model, dynamic=False)) if compile else model)

    def __call__(self, ids: Tensor, targets: Tensor, loss: LossSettings = PLAIN) -> LossOutput:
        return self._run(self.module, ids, targets, loss)

    def plain(self, ids: Tensor, targets: Tensor) -> LossOutput:
        """The same by the modules themselves, so that their hooks are called."""
        return self._run(self.model, ids, targets, PLAIN)

    def _run(self, module: nn.Module, ids: Tensor, targets: Tensor, loss: LossSettings) -> LossOutput:
        with autocast(self.precision, self.device):
            return module(self._moved(ids), self._moved(targets), loss=loss)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
