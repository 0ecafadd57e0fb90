"""The model as a training runs it: on its device, in its precision, compiled or not."""

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
from modular_gpt.training.compile import compiler_message, from_compiler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Device, precision and parallel strategy of a training.

    precision: one of ``PRECISIONS``; ``build_trainer`` decides ``auto``
    reason: why ``auto`` chose the precision; "" where it did not choose
    """

    device: torch.device
    precision: str
    parallel: Parallel
    reason: str = ""


class Forward:
    """Computes the loss of a batch: ``forward(ids, targets)``, both (B, T) and on any device, as are document ids."""

    def __init__(
        self, model: GPTModel, precision: str, compile: bool, parallel: Parallel, optional: bool = False
    ) -> None:
        """
        precision: one of ``PRECISIONS`` except ``auto``
        compile: whether to run the model through torch.compile
        parallel: the strategy that sums gradients over processes
        optional: continue without the compiler if it fails
        """
        self.model, self.precision, self.parallel, self.optional = model, precision, parallel, optional
        self.device = next(model.parameters()).device
        self.cache = CompileCache(cache_directory() / "compiled") if compile else None
        self.prepare(compile)

    def prepare(self, compile: bool) -> None:
        """Switch to compiled code, or back to the modules."""
        self.compiled = compile
        if compile:
            torch.compiler.reset()  # its limit of recompilations counts those for earlier models
        self.rounded = (
            compile and self.precision == "bf16" and self.device.type == "cpu" and self.parallel.processes.world == 1
        )
        module = RoundedModel(self.model) if self.rounded else self.model
        self.module = self.parallel.wrap(cast(nn.Module, torch.compile(module, dynamic=False)) if compile else module)

    def __call__(
        self, ids: Tensor, targets: Tensor, loss: LossConfig = PLAIN, documents: Tensor | None = None
    ) -> LossOutput:
        try:
            return self._run(self.module, ids, targets, documents, loss, self.rounded)
        except Exception as error:
            if not (self.compiled and from_compiler(error)):
                raise
            again = self._clear_cache()
            if not again and not self.optional:
                raise
            if not again:
                problem = compiler_message(error)
                log.warning("torch.compile does not work here (%s), so training continues without it", problem)
        self.prepare(compile=again)
        return self(ids, targets, loss, documents)

    def _clear_cache(self) -> bool:
        """Empty the compiler's cache once in a training, since a killed process may have left a damaged file in it.

        Returns whether it was emptied, so that compiling is worth another attempt.
        """
        cache, self.cache = self.cache, None
        if cache is None or not cache.clear():
            return False
        log.warning("torch.compile failed; its cache in '%s' is emptied, to try once more", cache.directory)
        return True

    def logits(self, ids: Tensor, model: GPTModel | None = None) -> Tensor:
        """(M, T) -> (M, T, V): all logits of this model, or of another one on the same device."""
        with autocast(self.precision, self.device):
            logits: Tensor = (self.module if model is None else model)(self._moved(ids))
            return logits

    def plain(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> LossOutput:
        """The loss without compiled code, so that the hooks of modules are called."""
        return self._run(self.model, ids, targets, documents, PLAIN)

    def _run(
        self,
        module: nn.Module,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None,
        loss: LossConfig,
        rounded: bool = False,
    ) -> LossOutput:
        packed = {} if documents is None else {"documents": self._moved(documents)}
        with autocast("float32" if rounded else self.precision, self.device):
            output: LossOutput = module(self._moved(ids), self._moved(targets), loss=loss, **packed)
            return output

    def _moved(self, tensor: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)


class RoundedModel(nn.Module):
    """A model that computes with its weights rounded to bf16, and so in bf16 from the first layer to the last.

    Softmax, the statistics of norms, the loss and the gradients of weights stay in float32. Weights are rounded once a
    pass; autocast would round them too, but leave the residual stream in float32. To be compiled: otherwise a block
    recomputed in the backward pass would see the weights that are not rounded.
    """

    def __init__(self, model: GPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, targets: Tensor, loss: LossConfig = PLAIN, documents: Tensor | None = None
    ) -> LossOutput:
        """ids (B, T), targets (B, T), document ids (B, T) or None -> the loss"""
        rounded = {name: weight.to(torch.bfloat16) for name, weight in self.model.named_parameters()}
        settings = {"loss": loss, "documents": documents}
        output: LossOutput = functional_call(self.model, rounded, (ids, targets), settings)
        return output
