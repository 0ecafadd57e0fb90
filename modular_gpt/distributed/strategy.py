"""The interface of a parallel strategy; the base class trains in one process."""

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Component, ComponentConfig, ComponentLike, decode
from modular_gpt.core.validation import positive
from modular_gpt.distributed.dtensor import distribute_like, full_tensor
from modular_gpt.model import GPTModel
from modular_gpt.runtime.processes import ProcessGroup

Tensors = dict[str, Tensor]
LAUNCH = "torchrun --nproc_per_node=2 --no-python mgpt-train"


@dataclass
class ParallelConfig(ComponentConfig):
    """Settings that all parallel strategies share.

    timeout: Number of seconds that a collective operation waits for another process before that counts as lost.
    """

    timeout: float = 600.0

    def __post_init__(self) -> None:
        positive("parallel", timeout=self.timeout)


class Parallel(Component, ABC, slot="parallel"):
    """A parallel strategy. The methods of the base class train in one process.

    data_rank, data_world: index of the shard of each batch's rows that this process computes, and number of shards
    state_shards: number of processes over which weights, gradients and optimizer state are sharded
    """

    single_process: ClassVar[bool] = False  # works in one process without a launcher
    multi_process: ClassVar[bool] = True  # works in processes that a launcher started
    shards_weights: ClassVar[bool] = False  # a process holds shards of the weights instead of full tensors

    shards_adapters: bool = False  # supports low-rank adapters on sharded weights

    def __init__(self, config: ComponentConfig, processes: ProcessGroup) -> None:
        self.config, self.processes = config, processes
        self.data_rank, self.data_world, self.state_shards = 0, 1, 1

    @property
    def timeout(self) -> float | None:
        """Timeout of collective operations in seconds; None if there is one process."""
        return self.config.timeout if isinstance(self.config, ParallelConfig) else None

    @property
    def sharded_checkpoints(self) -> bool:
        """Whether each process writes its shards into a checkpoint."""
        return False

    @classmethod
    def resolve(cls, config: ComponentConfig, processes: ProcessGroup) -> ComponentConfig:
        """The settings of the strategy to use; a strategy that selects another one overrides this method."""
        return config

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        """Move the model, or this process's shards of it, to the device. Called before the optimizer is built.

        With ``shards_weights``, shards of a model on the meta device are allocated and not initialised;
        ``initialise_shards`` or ``load`` fills them.
        """
        return model.to(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap the module that computes the loss, so that its backward pass sums gradients over processes."""
        return module

    def check_whole(self, optim: ComponentConfig, adapters: bool) -> None:
        """Raise a ConfigError if the optimizer or adapters need full matrices and this strategy shards them."""
        if not self.shards_weights:
            return
        reason = f"needs full matrices, and parallel={self.config.name} shards them over the processes: use"
        if adapters and not self.shards_adapters:
            raise ConfigError(f"lora.rank {reason} parallel=fsdp or parallel=ddp")
        if not getattr(optim.component, "supports_sharding", True):
            raise ConfigError(f"optim={optim.name} {reason} optim=adamw or optim=muon, or parallel=ddp")

    def check_rows(self, batch_size: int, micro_batches: int) -> None:
        """Raise a ConfigError unless the rows of a micro-batch divide evenly among the processes."""
        rows = batch_size // micro_batches
        if rows % self.data_world:
            raise ConfigError(
                f"{self.data_world} processes cannot share micro-batches of {rows} rows evenly: change"
                f" trainer.batch_size={batch_size} or trainer.gradient_accumulation={micro_batches}"
            )

    def rows(self, batch: Tensor, micro_batches: int) -> list[Tensor]:
        """The rows of a batch (B, ...) that this process computes: its shard of each micro-batch."""
        return list(batch.unflatten(0, (micro_batches, self.data_world, -1))[:, self.data_rank])

    def set_grad_sync(self, last: bool) -> None:
        """Enable the sum of gradients over processes for the ``last`` micro-batch only. Called before each of them."""

    def finish_gradients(self) -> None:
        """Complete the gradients after the last backward pass of an update. Collective."""

    def sum(self, values: Tensors) -> Tensors:
        """Sum named scalars over all rows of the batch; values: sums over the rows of this process. Collective."""
        return values if self.data_world == 1 else self.processes.all_reduce_sum(values)

    def mean(self, total: float, count: int) -> float:
        """The mean over all rows of the batch. Collective.

        total, count: sum and number of the terms of this process's rows
        """
        if self.data_world == 1:
            return total / count
        sums = self.sum({"total": torch.tensor(total).double(), "count": torch.tensor(count)})
        return float(sums["total"] / sums["count"])

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        """The model to generate samples with; None in processes that generate none. Collective: all must call it."""
        return model

    def gather(self, tensors: Tensors) -> Tensors:
        """Gather full tensors in the first process; empty in the others. Collective: all must call it."""
        gathered = {}
        for name, tensor in tensors.items():
            full = full_tensor(tensor)  # one at a time, so that the device holds one full tensor at most
            if self.processes.is_main:
                gathered[name] = full if full is tensor else full.cpu()
        return gathered

    @torch.no_grad()
    def load(self, model: GPTModel, weights: Mapping[str, Tensor]) -> None:
        """Copy full weights and buffers, by name, into a model that ``shard_model`` returned; others are unchanged."""
        for name, tensor in model.state_dict().items():
            if name in weights:
                tensor.copy_(distribute_like(weights[name], tensor))


def build_parallel(config: ComponentLike, processes: ProcessGroup) -> Parallel:
    """Build a strategy from its name, a mapping with a name, or a Config.

    Raises:
        ConfigError: the name or a setting is unknown, or the strategy does not support this number of processes.
    """
    settings = decode("parallel", config)
    if not supports(settings, processes):
        raise ConfigError(
            f"parallel={settings.name} trains in one process, and torchrun started {processes.world}: use parallel=ddp"
            if Parallel.of(settings).single_process
            else f"parallel={settings.name} needs processes that torchrun starts: {LAUNCH} parallel={settings.name} ..."
        )
    strategy: Parallel = Parallel.of(settings).resolve(settings, processes).build(processes)
    return strategy


def supports(config: ComponentConfig, processes: ProcessGroup) -> bool:
    """Whether a strategy supports these processes. torchrun may also start a single process."""
    strategy = Parallel.of(config)
    return (strategy.single_process and processes.world == 1) or (strategy.multi_process and processes.started)
