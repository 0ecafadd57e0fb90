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

    timeout: Number of seconds without an answer after which another process counts as lost.
    """

    timeout: float = 600.0

    def __post_init__(self) -> None:
        positive("parallel", timeout=self.timeout)


class Parallel(Component, ABC, slot="parallel"):
    """A parallel strategy. The methods of this class are those of one process that does all the work.

    data_rank, data_world: the share of each batch's rows that this process computes, and the number of shares
    state_shards: number of processes that weights, gradients and optimizer state are divided among
    """

    single_process: ClassVar[bool] = False  # works in one process that no launcher started
    multi_process: ClassVar[bool] = True  # works in processes that a launcher started
    shards_weights: ClassVar[bool] = False  # a process holds shards of the weights, not the whole tensors

    shards_adapters: bool = False  # low-rank adapters work with such shards

    def __init__(self, config: ComponentConfig, processes: ProcessGroup) -> None:
        self.config, self.processes = config, processes
        self.data_rank, self.data_world, self.state_shards = 0, 1, 1

    @property
    def timeout(self) -> float | None:
        """Number of seconds that another process may take to answer; None if there is no other process."""
        return self.config.timeout if isinstance(self.config, ParallelConfig) else None

    @property
    def sharded_checkpoints(self) -> bool:
        """Whether each process writes its own shards into a checkpoint."""
        return False

    @classmethod
    def resolve(cls, config: ComponentConfig, processes: ProcessGroup) -> ComponentConfig:
        """The settings of the strategy to use, for a strategy that chooses another one."""
        return config

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        """Move the model, or this process's shards of it, to the device. Called before the optimizer is built.

        With ``shards_weights``, a model on the meta device gets shards without values, which ``initialise_shards`` or
        ``load`` fills.
        """
        return model.to(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call for a loss, whose backward pass sums gradients over processes."""
        return module

    def check_whole(self, optim: ComponentConfig, adapters: bool) -> None:
        """Raise a ConfigError if the optimizer, or adapters, need whole matrices and this strategy shards them."""
        if not self.shards_weights:
            return
        shards = f"needs whole matrices, and parallel={self.config.name} leaves each process a shard of them: use"
        if adapters and not self.shards_adapters:
            raise ConfigError(f"lora.rank {shards} parallel=fsdp or parallel=ddp")
        if not getattr(optim.component, "supports_sharding", True):
            raise ConfigError(f"optim={optim.name} {shards} optim=adamw or optim=muon, or parallel=ddp")

    def check_rows(self, batch_size: int, micro_batches: int) -> None:
        """Raise a ConfigError unless the rows of a micro-batch divide evenly among the processes."""
        rows = batch_size // micro_batches
        if rows % self.data_world:
            raise ConfigError(
                f"{self.data_world} processes cannot share micro-batches of {rows} rows evenly: change"
                f" trainer.batch_size={batch_size} or trainer.gradient_accumulation={micro_batches}"
            )

    def rows(self, batch: Tensor, micro_batches: int) -> list[Tensor]:
        """The rows of a batch (B, ...) that this process computes: its share of each micro-batch."""
        return list(batch.unflatten(0, (micro_batches, self.data_world, -1))[:, self.data_rank])

    def set_grad_sync(self, last: bool) -> None:
        """Called before each micro-batch: gradients are summed over processes after the ``last`` one only."""

    def finish_gradients(self) -> None:
        """Called after the last backward pass of an update, before gradients are used. Collective."""

    def sum(self, values: Tensors) -> Tensors:
        """Sums over this process's rows (named scalars) -> sums over all rows of the batch."""
        return values if self.data_world == 1 else self.processes.all_reduce_sum(values)

    def mean(self, total: float, count: int) -> float:
        """The mean over all rows of the batch, from the sum and the number of terms of this process's rows."""
        if self.data_world == 1:
            return total / count
        sums = self.sum({"total": torch.tensor(total).double(), "count": torch.tensor(count)})
        return float(sums["total"] / sums["count"])

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        """The model to generate samples with; None in processes that generate none. Collective: all must call it."""
        return model

    def gather(self, tensors: Tensors) -> Tensors:
        """Whole tensors in the first process, for a checkpoint; empty in the others. Collective: all must call it."""
        gathered = {}
        for name, tensor in tensors.items():
            whole = full_tensor(tensor)  # one at a time, so that one whole tensor at most is on the device
            if self.processes.is_main:
                gathered[name] = whole if whole is tensor else whole.cpu()
        return gathered

    @torch.no_grad()
    def load(self, model: GPTModel, weights: Mapping[str, Tensor]) -> None:
        """Copy whole weights and buffers, by name, into a model that ``shard_model`` returned; others stay."""
        for name, tensor in model.state_dict().items():
            if name in weights:
                tensor.copy_(distribute_like(weights[name], tensor))


def build_parallel(config: ComponentLike, processes: ProcessGroup) -> Parallel:
    """A strategy from its name, a mapping with a name, or a Config, for these processes.

    Raises:
        ConfigError: the name or a setting is unknown, or the strategy does not work in this number of processes.
    """
    chosen = decode("parallel", config)
    if not supports(chosen, processes):
        raise ConfigError(
            f"parallel={chosen.name} trains in one process, and torchrun started {processes.world}: use parallel=ddp"
            if Parallel.of(chosen).single_process
            else f"parallel={chosen.name} is for processes that torchrun starts: {LAUNCH} parallel={chosen.name} ..."
        )
    strategy: Parallel = Parallel.of(chosen).resolve(chosen, processes).build(processes)
    return strategy


def supports(config: ComponentConfig, processes: ProcessGroup) -> bool:
    """Whether a strategy works in these processes; torchrun may also start a single one."""
    strategy = Parallel.of(config)
    return (strategy.single_process and processes.world == 1) or (strategy.multi_process and processes.started)
