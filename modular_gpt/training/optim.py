"""Optimizers: which parameters are updated how, and their state by parameter name."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Norm
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Component, ComponentConfig, decode
from modular_gpt.core.settings import positive

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
    """Settings that every optimizer has.

    learning_rate: the peak, which the schedule scales
    weight_decay: of matrices only; embeddings, norms and biases have none
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        positive("optim", learning_rate=self.learning_rate)
        if self.weight_decay < 0:
            raise ConfigError(f"optim.weight_decay must be 0 or more, got {self.weight_decay}")


class Optimizer(Component, ABC, slot="optim"):
    """One or more of PyTorch's optimizers that share a model's parameters between them."""

    def __init__(self, config: Any, model: nn.Module) -> None:
        """Take the parameters of ``model`` that require a gradient."""
        self.config = config
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self.parts = self.build(parameter_groups(model))
        for group in self.groups():
            group["peak"] = group["lr"]

    @abstractmethod
    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        """PyTorch optimizers over the parameters, each parameter in one of them."""

    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [parameter for group in self.groups() for parameter in group["params"]]

    def step(self, factor: float) -> None:
        """Update the parameters with their peak learning rate times ``factor``."""
        for group in self.groups():
            group["lr"] = group["peak"] * factor
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """What the optimizer remembers, as tensors named ``<parameter>/<quantity>``."""
        return {
            f"{self.names[parameter]}/{key}": torch.as_tensor(value)
            for part in self.parts
            for parameter, values in part.state.items()
            for key, value in values.items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what ``state`` gave; an empty one starts afresh.

        Raises:
            KeyError: the state is of other parameters.
        """
        places = {
            self.names[parameter]: (number, index)
            for number, part in enumerate(self.parts)
            for index, parameter in enumerate(p for group in part.param_groups for p in group["params"])
        }
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.parts]
        for key, value in state.items():
            name, _, quantity = key.rpartition("/")
            number, index = places[name]
            states[number].setdefault(index, {})[quantity] = value
        for part, each in zip(self.parts, states, strict=True):
            part.load_state_dict({"state": each, "param_groups": part.state_dict()["param_groups"]})


class AdamW(Optimizer, name="adamw"):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    @dataclass
    class Config(OptimizerConfig):
        """Learning rate, weight decay, and the averages of gradients.

        beta1, beta2: how slowly the averages of the gradient and of its square move, in [0, 1)
        eps: added to the root of the second
        """

        beta1: float = 0.9
        beta2: float = 0.99
        eps: float = 1e-8

        def __post_init__(self) -> None:
            super().__post_init__()
            check_betas(self.beta1, self.beta2)

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        return [adamw(self.config, groups, self.config.learning_rate)]


def adamw(config: Any, groups: Groups, learning_rate: float) -> torch.optim.AdamW:
    """AdamW over groups of parameters, of which the matrices decay; one kernel for all where PyTorch has it."""
    fused = all(p.device.type in ("cpu", "cuda") for group in groups.values() for p in group)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": config.weight_decay if kind == "matrices" else 0.0}
            for kind, group in groups.items()
            if group
        ],
        lr=learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )


def check_betas(*betas: float) -> None:
    """Raise a ConfigError unless averages move by these."""
    for number, beta in enumerate(betas, start=1):
        if not 0 <= beta < 1:
            raise ConfigError(f"optim.beta{number} must lie in [0, 1), got {beta}")


def build_optimizer(config: Any, model: nn.Module) -> Optimizer:
    """An optimizer of a model's parameters from its name, a mapping with a name, or a Config.

    Raises:
        ConfigError: the name or a setting is unknown.
    """
    config = decode("optim", config)
    return cast(type[Optimizer], config.component)(config, model)
