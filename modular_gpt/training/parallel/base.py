"""How the processes of a run share its work: what the training loop asks of each way, and training in one process."""

from abc import ABC
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Component, ComponentConfig, decode
from modular_gpt.core.settings import positive
from modular_gpt.model import GPTModel
from modular_gpt.training.processes import Processes

Tensors = dict[str, Tensor]


@dataclass
class ParallelConfig(ComponentConfig):
    """Settings of every way in which several processes train.

    timeout: seconds without an answer after which another process counts as lost
    """

    timeout: float = 600.0

    def __post_init__(self) -> None:
        positive("parallel", timeout=self.timeout)


class Parallel(Component, ABC, slot="parallel"):
    """One way to share the work. As it stands here, every process does all of it by itself.

    part, parts: which share of each batch's rows this process computes, and how many shares there are
    """

    alone: ClassVar[bool] = False  # whether it is a way for one process
    together: ClassVar[bool] = True  # whether it is one for several

    def __init__(self, config: Any, processes: Processes) -> None:
        self.config, self.processes = config, processes
        self.part, self.parts = 0, 1

    @property
    def timeout(self) -> float | None:
        """Seconds that an answer of another process may take; None where none is asked."""
        return cast(float, self.config.timeout)

    @classmethod
    def chosen(cls, config: Any, processes: Processes) -> Any:
        """The settings of the way that these stand for."""
        return config

    def place(self, model: GPTModel, device: torch.device) -> GPTModel:
        """The model on its device, as far as this process holds it; before an optimizer takes its parameters."""
        return model.to(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """What is called with inputs and targets, and adds up gradients over processes in its backward pass."""
        return module

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

    def before(self, last: bool) -> None:
        """To be called before each micro-batch: gradients need to be summed over processes after the ``last`` only."""

    def sum(self, values: Tensors) -> Tensors:
        """Scalars of this process's rows -> those of the whole batch."""
        return self.processes.add(values)

    def mean(self, total: float, count: int) -> float:
        """A sum over things of this process's rows, and how many they are -> the mean over those of the whole batch."""
        if self.parts == 1:
            return total / count
        sums = self.sum({"total": torch.tensor(total).double(), "count": torch.tensor(count)})
        return float(sums["total"] / sums["count"])

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of the whole gradient."""
        return torch.nn.utils.get_total_norm(gradients)

    def local(self, tensor: Tensor) -> Tensor:
        """What this process holds of a tensor."""
        return tensor

    def whole(self, tensors: Tensors) -> Tensors:
        """Tensors that this process may hold a part of -> whole ones in the first process, for a checkpoint."""
        return tensors

    def like(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        """A whole tensor -> the part of it that goes with what this process holds of a parameter."""
        return tensor

    def load(self, model: GPTModel, weights: Tensors) -> None:
        """Put whole weights, and buffers, into a model that ``place`` has placed."""
        model.load_state_dict(weights)


class OneProcess(Parallel, name="none"):
    """One process on one device."""

    alone, together = True, False

    @property
    def timeout(self) -> float | None:
        return None


class Automatic(Parallel, name="auto"):
    """ddp where torchrun has started several processes, none otherwise."""

    alone = True

    @dataclass
    class Config(ParallelConfig):
        """The settings of ddp."""

    @classmethod
    def chosen(cls, config: Any, processes: Processes) -> Any:
        name = "ddp" if processes.world > 1 else "none"
        return decode("parallel", {"name": name} if name == "none" else {"name": name, "timeout": config.timeout})


def build_parallel(config: Any, processes: Processes) -> Parallel:
    """The way to train that settings ask for, in these processes.

    Raises:
        ConfigError: it is one for several processes and there is one, or the other way round.
    """
    config = decode("parallel", config)
    kind = cast(type[Parallel], config.component)
    if not fits(config, processes):
        start = "torchrun --nproc_per_node=2 --no-python mgpt-train"
        raise ConfigError(
            f"parallel={config.name} trains in one process, and torchrun started {processes.world}: use parallel=ddp"
            if kind.alone
            else f"parallel={config.name} is for processes that torchrun starts: {start} parallel={config.name} ..."
        )
    config = kind.chosen(config, processes)
    return cast(type[Parallel], config.component)(config, processes)


def fits(config: Any, processes: Processes) -> bool:
    """Whether settings go with so many processes; torchrun may also start a single one."""
    kind = config.component
    return bool((kind.alone and processes.world == 1) or (kind.together and processes.started))
