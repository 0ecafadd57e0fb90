"""The model as a training runs it: on its device, in its precision, compiled where that is wished."""

import logging
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from modular_gpt.data.cache_dir import cache_directory
from modular_gpt.distributed import Parallel
from modular_gpt.model import GPTModel
from modular_gpt.model.loss import PLAIN, LossConfig, LossOutput
from modular_gpt.runtime.compile_cache import CompileCache
from modular_gpt.runtime.device import autocast
from modular_gpt.training.compile import from_compiler, reason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where and in which arithmetic a training runs.

    precision: one of ``PRECISIONS`` but ``auto``; parallel: with which other processes
    """

    device: torch.device
    precision: str
    parallel: Parallel


class Forward:
    """``forward(ids, targets)`` is the loss and its parts; both are (B, T) and may lie on the CPU."""

    def __init__(self, model: GPTModel, precision: str, compile: bool, parallel: Parallel, optional: bool = False):
        """precision: one of ``PRECISIONS`` but ``auto``; compile: let torch.compile generate code.

        parallel: takes gradients from other processes too
        optional: where the compiler fails, go on without it
        """
        self.model, self.precision, self.parallel, self.optional = model, precision, parallel, optional
        self.device = next(model.parameters()).device
        self.cache = CompileCache(cache_directory() / "compiled") if compile else None
        self.prepare(compile)

    def prepare(self, compile: bool) -> None:
        """From now on run compiled code, or the modules as they are."""
        self.compiled = compile
        if compile:
            torch.compiler.reset()  # it makes code for so many models of one kind only, and earlier ones count
        self.rounds = (
            compile and self.precision == "bf16" and self.device.type == "cpu" and self.parallel.processes.world == 1
        )
        module = Rounded(self.model) if self.rounds else self.model
        self.module = self.parallel.wrap(cast(nn.Module, torch.compile(module, dynamic=False)) if compile else module)

    def __call__(self, ids: Tensor, targets: Tensor, loss: LossConfig = PLAIN) -> LossOutput:
        try:
            return self._run(self.module, ids, targets, loss, self.rounds)
        except Exception as error:
            if not (self.compiled and from_compiler(error)):
                raise
            again = self._clear_cache()
            if not again and not self.optional:
                raise
            if not again:
                log.warning("torch.compile does not work here (%s), so training continues without it", reason(error))
        self.prepare(compile=again)
        return self(ids, targets, loss)

    def _clear_cache(self) -> bool:
        """Once in a training: empty the compiler's directory, in which a killed process may have left half a file."""
        cache, self.cache = self.cache, None
        if cache is None or not cache.clear():
            return False
        log.warning("torch.compile failed; its cache in '%s' is emptied, to try once more", cache.directory)
        return True

    def plain(self, ids: Tensor, targets: Tensor) -> LossOutput:
        """The same by the modules themselves, so that their hooks are called."""
        return self._run(self.model, ids, targets, PLAIN)

    def _run(
        self, module: nn.Module, ids: Tensor, targets: Tensor, loss: LossConfig, rounds: bool = False
    ) -> LossOutput:
        with autocast("float32" if rounds else self.precision, self.device):
            return module(self._moved(ids), self._moved(targets), loss=loss)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class Rounded(nn.Module):
    """A model that computes with its weights rounded to bf16, and so in bf16 from the first layer to the last.

    Softmax, statistics of norms and the loss stay in float32, and so do the gradients of the weights. Each weight is
    rounded once a pass, where autocast would do so and leave the residual stream in float32. To be compiled: what is
    computed again in a backward pass would see the weights as they were, unless the compiler has seen both.
    """

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor, loss: LossConfig = PLAIN) -> LossOutput:
        """(B, T) ids and targets -> the loss and its parts"""
        rounded = {name: weight.to(torch.bfloat16) for name, weight in self.model.named_parameters()}
        return functional_call(self.model, rounded, (ids, targets), {"loss": loss})
