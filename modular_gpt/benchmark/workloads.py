"""Workloads: a training step, the prefill of a prompt, and decoding after it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modular_gpt.benchmark.config import BenchmarkConfig
from modular_gpt.deploy.cpu_packing import PACKINGS
from modular_gpt.distributed import build_parallel
from modular_gpt.model import GPTModel
from modular_gpt.optim import build_optimizer
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training.estimate import flops_per_token
from modular_gpt.training.forward import Forward

WEIGHTS = {"float32": torch.float32, "bf16": torch.bfloat16}
FORWARD = 1 / 3  # fraction of the operations of a training step in its forward pass


@dataclass(frozen=True)
class Cell:
    """A workload and its size.

    measure: train, prefill or decode
    context: number of tokens per row; batch: number of rows
    """

    measure: str
    context: int
    batch: int


class Workload(ABC):
    """A workload on one model.

    tokens: number of tokens that a run processes
    flops: number of floating-point operations of a run
    bytes_read: lower bound of the bytes of weights and cache that a run reads
    predicted, allocated: bytes of the cache by its CacheSpec, and of its tensors
    """

    tokens: int
    flops: float = 0.0
    bytes_read: float = 0.0
    predicted: int = 0
    allocated: int = 0

    @abstractmethod
    def run(self) -> None:
        """Run the workload once."""


class TrainingStep(Workload):
    """Forward pass, backward pass and update of the weights."""

    def __init__(self, model: GPTModel, cell: Cell, config: BenchmarkConfig) -> None:
        self.tokens = cell.batch * cell.context
        self.flops = self.tokens * flops_per_token(replace(model.config, context_length=cell.context))
        model.train()
        self.optimizer = build_optimizer("adamw", model)
        self.forward = Forward(model, config.precision, config.compile, build_parallel("none", ProcessGroup()))
        self.ids = random_ids(model, cell.batch, cell.context + 1)

    def run(self) -> None:
        self.forward(self.ids[:, :-1], self.ids[:, 1:]).loss.backward()
        self.optimizer.step(1.0)
        self.optimizer.zero_grad()


class Prefill(Workload):
    """Forward pass of a prompt that fills a cache."""

    def __init__(self, model: GPTModel, cell: Cell, config: BenchmarkConfig) -> None:
        self.tokens = cell.batch * cell.context
        self.flops = FORWARD * self.tokens * flops_per_token(replace(model.config, context_length=cell.context))
        self.model, self.cell = PACKINGS[config.packing](model.eval()), cell
        self.ids = random_ids(model, cell.batch, cell.context)

    @torch.inference_mode()
    def run(self) -> None:
        cache = self.model.new_cache(self.cell.batch, self.cell.context)
        self.model(self.ids, cache=cache, last_only=True)


class Decoding(Workload):
    """Greedy decoding with a cache after a prompt."""

    def __init__(self, model: GPTModel, cell: Cell, config: BenchmarkConfig) -> None:
        self.count = config.decode_tokens
        self.tokens = cell.batch * self.count
        weights = model.num_parameters().active  # before packing, which hides parameters from the count
        self.model = PACKINGS[config.packing](model.eval())
        capacity = cell.context + config.decoded
        dtype = model.embedding.weight.dtype
        self.predicted = model.config.cache_bytes(cell.batch, capacity, dtype)
        with torch.inference_mode():
            self.cache = model.new_cache(cell.batch, capacity)
            self.token = self._next(random_ids(model, cell.batch, cell.context))
        self.allocated = sum(layer.nbytes() for layer in self.cache.layers)
        itemsize = 1 if config.packing == "int8" else dtype.itemsize
        self.bytes_read = self.count * (weights * itemsize + model.config.cache_bytes(cell.batch, cell.context, dtype))

    def _next(self, ids: Tensor) -> Tensor:
        token: Tensor = self.model(ids, cache=self.cache, last_only=True)[:, -1:].argmax(-1)
        return token

    @torch.inference_mode()
    def run(self) -> None:
        for _ in range(self.count):
            self.token = self._next(self.token)


WORKLOADS: dict[str, type[TrainingStep] | type[Prefill] | type[Decoding]] = {
    "train": TrainingStep,
    "prefill": Prefill,
    "decode": Decoding,
}


def random_ids(model: GPTModel, batch: int, count: int) -> Tensor:
    """Random token ids (batch, count), which are equal for all models with the same vocabulary size."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (batch, count), generator=generator)
    return ids.to(model.embedding.weight.device)
