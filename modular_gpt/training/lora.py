"""Low-rank adaptation (https://arxiv.org/abs/2106.09685), of linear layers by the peft library.

Two narrow matrices beside each chosen layer are trained instead of its weights; newly initialised weights are trained
whole. For evaluation and checkpoints the adapters are merged into the weights, so that a checkpoint holds a plain
model; training continues from the weights without them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modular_gpt.checkpoint import CheckpointReader
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.validation import fraction, positive
from modular_gpt.optim.parameter_patterns import first_match, freeze
from modular_gpt.training.expert_adapters import adapt_stack

ADAPTERS = "adapters"  # a checkpoint's set of tensors: the adapters, and the weights without them
NEW_WEIGHTS = "trained_whole"  # in a checkpoint's metadata: parameters that are trained beside the adapters
ROUTER = ".router"  # a linear layer that chooses experts; a small change of its logits leaves most choices unchanged
ADAPTER = ".lora_"  # in the names of adapters' parameters
ADAPTED = re.compile(r"\.base_layer(?=\.)|parametrizations\.(?=\w+\.original$)|\.original$")  # not in a plain model


@dataclass
class LoraConfig:
    """Settings of low-rank adapters (LoRA), which are trained instead of a trained model's weights.

    rank: Rank of the adapters. By default (null) there are none, and all weights are trained.
    alpha: Scale of the adapters, which are multiplied by alpha / rank.
    dropout: Dropout probability of the inputs of adapters of linear layers.
    targets: Patterns of the linear layers and stacks of experts that get an adapter, by name or its last component,
        such as [query, value] or [blocks.3.*]. Empty selects all in the blocks except routers.
    """

    rank: int | None = None
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        positive("lora", rank=self.rank, alpha=self.alpha)
        fraction("lora", dropout=self.dropout)


LoraSettings = LoraConfig  # former name


class Adapted(NamedTuple):
    """A weight with an adapter.

    module, name: the module and the parameter's name of the weight without the adapter
    delta: computes the adapter's update of the weight; enable: switches the adapter on or off
    """

    module: nn.Module
    name: str
    delta: Callable[[], Tensor]
    enable: Callable[[bool], None]

    @property
    def weight(self) -> Tensor:
        """The weight, or this process's shards of it: fully_shard puts another parameter in its place."""
        return self.module.get_parameter(self.name)


class Adapters:
    """The adapters of a model."""

    def __init__(self, model: nn.Module, settings: LoraConfig, new_weights: Sequence[str] = ()) -> None:
        """Add adapters, whose update is zero until they are trained, and freeze the other parameters.

        new_weights: names of newly initialised parameters, which are trained whole

        Raises:
            ConfigError: peft is not installed, or a pattern fits no layer.
        """
        assert settings.rank is not None
        self.model = model
        self.new_weights = list(new_weights)
        self.base_weights: dict[str, Tensor] = {}  # of adapted layers, while adapters are merged
        names = adapted_names(model, settings.targets)
        stacks = [name for name in names if name in dict(model.named_parameters())]
        model.requires_grad_(False)
        self.adapted = _adapt_linear(model, settings, [name for name in names if name not in stacks])
        for name in stacks:
            where, _, last = name.rpartition(".")
            module = model.get_submodule(where)
            adapter = adapt_stack(module, last, settings.rank, settings.alpha)
            enable = partial(setattr, adapter, "enabled")
            original = f"parametrizations.{last}.original"
            self.adapted[f"{where}.{original}"] = Adapted(module, original, adapter.delta, enable)
        for name, parameter in model.named_parameters():
            if plain_name(name) in self.new_weights:
                parameter.requires_grad_(True)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Context manager: the adapters are merged into the weights, which are bitwise the same again afterwards."""
        with torch.no_grad():
            for name, adapted in self.adapted.items():
                self.base_weights[name] = adapted.weight.clone()
                adapted.weight.add_(adapted.delta())
                adapted.enable(False)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, adapted in self.adapted.items():
                    adapted.weight.copy_(self.base_weights.pop(name))
                    adapted.enable(True)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Context manager: the model computes without adapters, also inside ``merged``."""
        self._switch(False)
        try:
            yield
        finally:
            self._switch(True)

    @torch.no_grad()
    def _switch(self, on: bool) -> None:
        """Switch adapters on or off; merged weights change places with those without adapters."""
        for name, adapted in self.adapted.items():
            if name in self.base_weights:
                other = adapted.weight.clone()
                adapted.weight.copy_(self.base_weights[name])
                self.base_weights[name] = other
            else:
                adapted.enable(on)

    def weights(self) -> dict[str, Tensor]:
        """The model's state by the names of a model without adapters; inside ``merged``, that of the merged model."""
        return {plain_name(name): tensor for name, tensor in self._items() if ADAPTER not in name}

    def complete(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of this model: its present adapters, and the result of an earlier call of ``weights``."""
        return {n: tensor if ADAPTER in n else weights[plain_name(n)] for n, tensor in self._items()}

    def state(self) -> dict[str, Tensor]:
        """Inside ``merged``: the tensors that a checkpoint needs beside the merged weights, by name.

        These are the adapters, and the weights without them.
        """
        return {**self.base_weights, **{name: tensor for name, tensor in self._items() if ADAPTER in name}}

    def _items(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.state_dict().items()


def peft_package() -> ModuleType:
    """The peft library. Raises a ConfigError if it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora.rank needs another package: pip install 'modular-gpt[peft]'") from error
    return peft


def plain_name(name: str) -> str:
    """The name that a parameter has in a model without adapters."""
    return ADAPTED.sub("", name)


def _adapt_linear(model: nn.Module, settings: LoraConfig, names: list[str]) -> dict[str, Adapted]:
    """Wrap linear layers in peft's; the adapted weights by their names in the model."""
    peft = peft_package()
    if not names:
        return {}
    config = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names
    )
    peft.inject_adapter_in_model(config, model)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, peft.tuners.lora.LoraLayer)}
    return {
        f"{name}.base_layer.weight": Adapted(
            layer.base_layer,
            "weight",
            partial(layer.get_delta_weight, layer.active_adapters[0]),
            layer.enable_adapters,
        )
        for name, layer in layers.items()
    }


def adapted_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the linear layers and stacked weights (E, out, in) that match; no pattern: all in blocks but routers."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names += [name for name, parameter in model.named_parameters() if parameter.ndim == 3]
    full = [p if p in names or "." in p or "*" in p else f"*.{p}" for p in patterns]
    found = first_match(full or ["blocks.*"], names, "lora.targets", "linear layer")
    return [name for name in found if patterns or not name.endswith(ROUTER)]


def select_trained(
    model: nn.Module, lora: LoraConfig, frozen: Sequence[str], new_weights: Sequence[str] = ()
) -> Adapters | None:
    """Add adapters to a model if ``lora`` has a rank, and freeze the parameters that match a pattern of ``frozen``."""
    adapters = None if lora.rank is None else Adapters(model, lora, new_weights)
    freeze(model, frozen)
    return adapters


def new_weights_of(checkpoint: CheckpointReader) -> list[str]:
    """The parameters that the run of a checkpoint trains whole beside its adapters."""
    return list(checkpoint.meta.get(NEW_WEIGHTS, []))


def check_lora(settings: LoraConfig, checkpoint: CheckpointReader) -> None:
    """Raise a CheckpointError if a run cannot be resumed with these settings."""
    run = checkpoint.meta.get("run") or {}
    before = run.get("lora") or asdict(LoraConfig())
    changed = [f"lora.{name}={before.get(name)}" for name, now in asdict(settings).items() if before.get(name) != now]
    if changed:
        raise CheckpointError(
            f"'{checkpoint.directory}' was trained with {', '.join(changed)}: resume with that, or start a new run from"
            f" the merged weights with init_from={checkpoint.directory}"
        )


def restore_adapters(adapters: Adapters, checkpoint: CheckpointReader) -> None:
    """Load adapters, and the weights without them, from a checkpoint."""
    adapters.model.load_state_dict(checkpoint.required_tensors(ADAPTERS), strict=False)
