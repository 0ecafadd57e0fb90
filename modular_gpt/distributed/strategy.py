"""How the processes of a run share its work: what the training loop asks of each way, and training in one process."""

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Component, ComponentConfig, decode
from modular_gpt.core.validation import positive
from modular_gpt.distributed.dtensor import distribute_like, full_tensor
from modular_gpt.model import GPTModel
from modular_gpt.runtime.processes import ProcessGroup

Tensors = dict[str, Tensor]


@dataclass
class ParallelConfig(ComponentConfig):
    """Settings that all parallel strategies share.

    timeout: Number of seconds without an answer after which another process counts as lost.
    """

    timeout: float = 600.0

    def __post_init__(self) -> None:
        positive("parallel", timeout=self.timeout)


class Parallel(Component, ABC, slot="parallel"):
    """One way to share the work. As it stands here, every process does all of it by itself.

    part, parts: which share of each batch's rows this process computes, and how many shares there are
    state_parts: processes that divide weights, gradients and the optimizer's state evenly among them
    """

    single_process: ClassVar[bool] = False  # whether it is a way for one process
    together: ClassVar[bool] = True  # whether it is one for several
    divides: ClassVar[bool] = False  # whether a process holds a part of each tensor only

    def __init__(self, config: Any, processes: ProcessGroup) -> None:
        self.config, self.processes = config, processes
        self.part, self.parts, self.state_parts = 0, 1, 1

    @property
    def timeout(self) -> float | None:
        """Seconds that an answer of another process may take; None where none is asked."""
        return cast(float, self.config.timeout)

    @classmethod
    def resolve(cls, config: Any, processes: ProcessGroup) -> Any:
        """The settings of the way that these stand for."""
        return config

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        """The model on its device, as far as this process holds it; before an optimizer takes its parameters."""
        return model.to(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """What is called with inputs and targets, and adds up gradients over processes in its backward pass."""
        return module

    def check_whole(self, config: Any, adapters: bool) -> None:
        """Raise a ConfigError for an optimizer, or for adapters, that need whole matrices where there are none."""
        if self.divides and adapters:
            raise ConfigError(
                f"lora.rank needs whole matrices, and parallel={self.config.name} leaves each process a part of them:"
                " use parallel=ddp"
            )
        if self.divides and not config.component.takes_parts:
            raise ConfigError(
                f"optim={config.name} needs whole matrices, and parallel={self.config.name} leaves each process a part"
                " of them: use optim=adamw or optim=muon, or parallel=ddp"
            )

    def check_rows(self, batch_size: int, pieces: int) -> None:
        """Raise a ConfigError unless a micro-batch has as many rows for each process."""
        if batch_size // pieces % self.parts:
            raise ConfigError(
                f"{self.parts} processes cannot share micro-batches of {batch_size // pieces} rows evenly: change"
                f" trainer.batch_size={batch_size} or trainer.gradient_accumulation={pieces}"
            )

    def rows(self, batch: Tensor, pieces: int) -> list[Tensor]:
        """The rows of a batch (B, ...) that this process computes: its share of each of ``pieces`` micro-batches."""
        return list(batch.unflatten(0, (pieces, self.parts, -1))[:, self.part])

    def set_grad_sync(self, last: bool) -> None:
        """To be called before each micro-batch: gradients need to be summed over processes after the ``last`` only."""

    def sum(self, values: Tensors) -> Tensors:
        """Scalars of this process's rows -> those of the whole batch."""
        return values if self.parts == 1 else self.processes.add(values)

    def mean(self, total: float, count: int) -> float:
        """A sum over things of this process's rows, and how many they are -> the mean over those of the whole batch."""
        if self.parts == 1:
            return total / count
        sums = self.sum({"total": torch.tensor(total).double(), "count": torch.tensor(count)})
        return float(sums["total"] / sums["count"])

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        """The model to sample from, which all processes are asked for; None in those that have none."""
        return model

    def gather(self, tensors: Tensors) -> Tensors:
        """Tensors of which this process may hold a part -> whole ones in the first process, for a checkpoint."""
        found = {}
        for name, tensor in tensors.items():
            whole = full_tensor(tensor)  # one at a time, and all processes take part in it
            if self.processes.is_main:
                found[name] = whole if whole is tensor else whole.cpu()
        return found

    @property
    def sharded_checkpoints(self) -> bool:
        """Whether each process writes what it holds into a checkpoint."""
        return False

    @torch.no_grad()
    def load(self, model: GPTModel, weights: Tensors) -> None:
        """Put whole weights, and buffers, into a model that ``place`` has placed; what is not there stays."""
        for name, tensor in model.state_dict().items():
            if name in weights:
                tensor.copy_(distribute_like(weights[name], tensor))


class OneProcess(Parallel, name="none"):
    """One process on one device."""

    single_process, together = True, False

    @property
    def timeout(self) -> float | None:
        return None


class Automatic(Parallel, name="auto"):
    """ddp where torchrun has started several processes, none otherwise."""

    single_process = True

    @dataclass
    class Config(ParallelConfig):
        """The settings of ddp."""

    @classmethod
    def resolve(cls, config: Any, processes: ProcessGroup) -> Any:
        name = "ddp" if processes.world > 1 else "none"
        return decode("parallel", {"name": name} if name == "none" else {"name": name, "timeout": config.timeout})


def build_parallel(config: Any, processes: ProcessGroup) -> Parallel:
    """The way to train that settings ask for, in these processes.

    Raises:
        ConfigError: it is one for several processes and there is one, or the other way round.
    """
    config = decode("parallel", config)
    kind = cast(type[Parallel], config.component)
    if not supports(config, processes):
        start = "torchrun --nproc_per_node=2 --no-python mgpt-train"
        raise ConfigError(
            f"parallel={config.name} trains in one process, and torchrun started {processes.world}: use parallel=ddp"
            if kind.single_process
            else f"parallel={config.name} is for processes that torchrun starts: {start} parallel={config.name} ..."
        )
    config = kind.resolve(config, processes)
    return config.build(processes)


def supports(config: Any, processes: ProcessGroup) -> bool:
    """Whether settings go with so many processes; torchrun may also start a single one."""
    kind = config.component
    return bool((kind.single_process and processes.world == 1) or (kind.together and processes.started))
