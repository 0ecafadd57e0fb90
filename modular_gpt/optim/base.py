"""What an optimizer is: which parameters are updated how, and their state by parameter name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Norm
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Component, ComponentConfig
from modular_gpt.core.validation import not_negative, positive
from modular_gpt.distributed.dtensor import distribute_like, division_of
from modular_gpt.model import GPTModel
from modular_gpt.optim.parameter_patterns import first_match

Groups = dict[str, list[nn.Parameter]]


def parameter_groups(model: nn.Module) -> Groups:
    """The parameters that are trained, each once, by what they are.

    matrices: weights of linear layers and experts; embeddings: tables that are looked up, and a head tied to one;
    vectors: biases, norms and whatever else has no rows and columns
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
            elif parameter.ndim < 2 or name.endswith("bias") or isinstance(module, Norm):
                groups["vectors"].append(parameter)
            else:
                groups["matrices"].append(parameter)
    return groups


@dataclass
class OptimizerConfig(ComponentConfig):
    """Settings that all optimizers share.

    learning_rate: Peak learning rate, which the schedule scales. By default (null) 0.5 / d_model and at most 0.004:
        0.004 at a width of 128, 0.00065 at 768.
    weight_decay: Weight decay of matrices. Embeddings, norms and biases have none.
    learning_rate_scale: Factors of the learning rate by patterns of parameter names, such as {embedding*: 0.1,
        *.attention.*: 0.5}. Where several match, the first counts.
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
                    " trainer.frozen leaves parameters as they are"
                )


def peak_learning_rate(config: OptimizerConfig, d_model: int) -> float:
    """The peak learning rate for a model of this width, with the default for null filled in."""
    return config.learning_rate or min(0.5 / d_model, 0.004)


class Optimizer(Component, ABC, slot="optim"):
    """One or more of PyTorch's optimizers that share a model's parameters between them."""

    takes_parts: ClassVar[bool] = True  # whether it works on matrices of which each process holds a part

    def __init__(self, config: Any, model: GPTModel) -> None:
        """Take the parameters of ``model`` that require a gradient."""
        self.config = config
        self.learning_rate = peak_learning_rate(config, model.config.d_model)
        self.head = None if model.head is None else model.head.weight
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.parts = self.build(parameter_groups(model))
        self.present_rate = 0.0  # learning rate of the last step, where nothing scales it
        self._scale()

    @abstractmethod
    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        """PyTorch optimizers over the parameters, each parameter in one of them."""

    def _scale(self) -> None:
        """Split the parameter groups of all parts by the factors of their learning rates, and note their peaks."""
        factors = self.config.learning_rate_scale
        trained = [name for parameter, name in self.names.items() if parameter.requires_grad]
        pattern_of = first_match(factors, trained, "optim.learning_rate_scale")
        for part in self.parts:
            split = []
            for group in part.param_groups:
                by_factor: dict[tuple[float, Any], list[nn.Parameter]] = {}
                for parameter in group["params"]:
                    factor = factors.get(pattern_of.get(self.names[parameter], ""), 1.0)
                    by_factor.setdefault((factor, division_of(parameter)), []).append(parameter)
                split += [{**group, "params": each, "peak": group["lr"] * f} for (f, _), each in by_factor.items()]
            part.param_groups = split

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [parameter for group in self.groups() for parameter in group["params"]]

    def step(self, factor: float) -> None:
        """Update the parameters with their peak learning rate times ``factor``."""
        self.present_rate = self.learning_rate * factor
        for group in self.groups():
            group["lr"] = group["peak"] * factor
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_bytes(self) -> int:
        """Bytes of ``state`` after a step, which is taken: for parameters that are shapes without content."""
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.step(0.0)
        return sum(tensor.nbytes for tensor in self.state().values())

    def state(self) -> dict[str, Tensor]:
        """What the optimizer remembers, as tensors named ``<parameter>/<quantity>``."""
        return {
            f"{self.names[parameter]}/{key}": torch.as_tensor(value)
            for part in self.parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` gave, for the parameters that are trained now; others start afresh.

        Raises:
            KeyError: the state is of another model's parameters.
        """
        parameters = {name: parameter for parameter, name in self.names.items()}
        places = {
            self.names[parameter]: (number, index)
            for number, part in enumerate(self.parts)
            for index, parameter in enumerate(p for group in part.param_groups for p in group["params"])
        }
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        for key, value in state.items():
            name, _, quantity = key.rpartition("/")
            if name in parameters and name not in places:
                continue  # it was trained and is not any more
            number, index = places[name]
            parameter = parameters[name]
            value = distribute_like(value, parameter) if value.shape == parameter.shape else value
            states[number].setdefault(index, {})[quantity] = value
        for part, each in zip(self.parts, states, strict=True):
            part.load_state_dict({"state": each, "param_groups": part.state_dict()["param_groups"]})


def with_decay(config: Any, groups: Groups) -> list[dict[str, Any]]:
    """Groups as PyTorch takes them; only matrices decay."""
    return [
        {"params": group, "weight_decay": config.weight_decay if kind == "matrices" else 0.0}
        for kind, group in groups.items()
        if group
    ]


def check_averages(**values: float) -> None:
    """Raise a ConfigError unless averages can move by these."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ConfigError(f"optim.{name} must lie in [0, 1), got {value}")
