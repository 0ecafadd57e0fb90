"""The interface of an optimizer: parameter groups, update, and state by parameter name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import Component, ComponentConfig
from modular_gpt.core.validation import not_negative, positive
from modular_gpt.distributed.dtensor import distribute_like, mesh_of
from modular_gpt.model import GPTModel
from modular_gpt.nn.matrices import is_matrix
from modular_gpt.optim.parameter_patterns import first_match

Groups = dict[str, list[nn.Parameter]]


def parameter_groups(model: nn.Module) -> Groups:
    """Split the trained parameters of a model into three groups; each parameter is in one of them.

    matrices: weights of linear layers and experts
    embeddings: embedding tables, including one that is tied to the head
    vectors: biases, weights of norms, and all other parameters, such as those marked by ``mark_no_matrix``
    """
    groups: Groups = {"matrices": [], "embeddings": [], "vectors": []}
    seen: set[nn.Parameter] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen or not parameter.requires_grad:
                continue
            seen.add(parameter)
            if isinstance(module, nn.Embedding):
                groups["embeddings"].append(parameter)
            else:
                groups["matrices" if is_matrix(module, name) else "vectors"].append(parameter)
    return groups


@dataclass
class OptimizerConfig(ComponentConfig):
    """Settings that all optimizers share.

    learning_rate: Peak learning rate, which the schedule scales. By default (null) 0.5 / d_model and at most 0.004:
        0.004 at a width of 128, 0.00065 at 768.
    weight_decay: Weight decay of matrices. Embeddings, norms and biases have none.
    learning_rate_scale: Factors of the learning rate by patterns of parameter names, such as {embedding*: 0.1,
        *.attention.*: 0.5}. If several patterns match a name, the first one applies.
    """

    learning_rate: float | None = None
    weight_decay: float = 0.1
    learning_rate_scale: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive("optim", learning_rate=self.learning_rate)
        not_negative("optim", weight_decay=self.weight_decay)
        for pattern, factor in self.learning_rate_scale.items():
            if not isinstance(factor, int | float) or not factor > 0:
                raise ConfigError(
                    f"optim.learning_rate_scale: the factor of {pattern!r} must be a number above 0, got {factor!r};"
                    " use trainer.frozen to freeze parameters"
                )

    def default_learning_rate(self, d_model: int) -> float:
        """The peak learning rate for a model of width ``d_model`` if ``learning_rate`` is null."""
        return min(0.5 / d_model, 0.004)


def peak_learning_rate(config: OptimizerConfig, d_model: int) -> float:
    """The peak learning rate for a model of width ``d_model``; null is replaced by the default."""
    return config.learning_rate or config.default_learning_rate(d_model)


def with_former_rate(settings: PlainMapping, d_model: int) -> PlainMapping:
    """Replace a null learning rate in the recorded settings of an optimizer by the default of former versions.

    Runs of former versions recorded null, and the default was the same for all optimizers.
    """
    rate = settings.get("learning_rate") or OptimizerConfig().default_learning_rate(d_model)
    return {**settings, "learning_rate": rate}


class Optimizer(Component, ABC, slot="optim"):
    """One or more PyTorch optimizers, each for some of the model's parameters.

    optimizers: the optimizers that ``build`` returned
    names: name of each parameter of the model
    present_rate: learning rate of the last step, for parameters without a factor in ``learning_rate_scale``
    """

    supports_sharding: ClassVar[bool] = True  # False: it needs full matrices instead of shards (fsdp, tensor)

    def __init__(self, config: OptimizerConfig, model: GPTModel) -> None:
        """Optimise the parameters of ``model`` that require a gradient."""
        self.config = config
        self.learning_rate = peak_learning_rate(config, model.config.d_model)
        self.head = getattr(model.head, "weight", None)  # None: a tied head, or a module without a weight
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.optimizers = self.build(parameter_groups(model))
        self.present_rate = 0.0
        self._split_groups()

    @abstractmethod
    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        """Create PyTorch optimizers for the parameters in ``groups``; each parameter must be in one of them."""

    def _split_groups(self) -> None:
        """Split the parameter groups of the optimizers by learning-rate factor and mesh, and store their peak rates."""
        factors = self.config.learning_rate_scale
        trained = [name for parameter, name in self.names.items() if parameter.requires_grad]
        pattern_of = first_match(factors, trained, "optim.learning_rate_scale")
        for optimizer in self.optimizers:
            split: list[PlainDict] = []
            for group in optimizer.param_groups:
                members: dict[tuple[float, DeviceMesh | None], list[nn.Parameter]] = {}
                for parameter in group["params"]:
                    factor = factors.get(pattern_of.get(self.names[parameter], ""), 1.0)
                    members.setdefault((factor, mesh_of(parameter)), []).append(parameter)
                for (factor, _), parameters in members.items():
                    split.append({**group, "params": parameters, "peak": group["lr"] * factor})
            optimizer.param_groups = split

    def groups(self) -> list[PlainDict]:
        """The parameter groups of all optimizers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters."""
        return [parameter for group in self.groups() for parameter in group["params"]]

    def step(self, factor: float) -> None:
        """Update the parameters; factor: of the schedule, by which peak learning rates are multiplied."""
        self.present_rate = self.learning_rate * factor
        for group in self.groups():
            group["lr"] = group["peak"] * factor
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_bytes(self) -> int:
        """Bytes of ``state`` after a step. This method performs the step, so call it on fake tensors only."""
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0)
        return sum(tensor.nbytes for tensor in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """The state of the optimizers as tensors named ``<parameter>/<quantity>``."""
        return {
            f"{self.names[parameter]}/{key}": torch.as_tensor(value)
            for optimizer in self.optimizers
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that ``state`` returned.

        The state of parameters that are frozen now is ignored; trained parameters without a state start with none.

        Raises:
            KeyError: the model has no parameter of a name in the state.
        """
        parameters = {name: parameter for parameter, name in self.names.items()}
        locations = {
            self.names[parameter]: (number, index)
            for number, optimizer in enumerate(self.optimizers)
            for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"])
        }
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for key, value in state.items():
            name, _, quantity = key.rpartition("/")
            if name in parameters and name not in locations:
                continue  # frozen now
            number, index = locations[name]
            parameter = parameters[name]
            value = distribute_like(value, parameter) if value.shape == parameter.shape else value
            states[number].setdefault(index, {})[quantity] = value
        for optimizer, loaded in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict({"state": loaded, "param_groups": optimizer.state_dict()["param_groups"]})


def with_decay(config: OptimizerConfig, groups: Groups) -> list[PlainDict]:
    """Parameter groups in the format of PyTorch's optimizers; only matrices have weight decay."""
    return [
        {"params": parameters, "weight_decay": config.weight_decay if name == "matrices" else 0.0}
        for name, parameters in groups.items()
        if parameters
    ]
