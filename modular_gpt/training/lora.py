"""Low-rank adaptation (https://arxiv.org/abs/2106.09685) by the peft library.

Beside each chosen linear layer stand two narrow ones, which alone are trained. To be judged and saved, a model has
them merged into its weights, so that a checkpoint holds a plain model; training goes on from the layers' own weights.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modular_gpt.checkpoint import META, CheckpointReader, read_json
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.core.validation import fraction, positive
from modular_gpt.optim.parameter_patterns import first_match, freeze

ADAPTERS = "adapters"  # a checkpoint's set of tensors that the merged weights do not tell
ADAPTED, ADAPTER = ".base_layer.", ".lora_"  # in peft's names of a layer's own weights, and of what stands beside them


@dataclass
class LoraConfig:
    """Train low-rank adapters of a model that was trained before, instead of its weights.

    rank: of the adapters (null: the weights themselves are trained); alpha: adapters count alpha / rank
    dropout: of what adapters read
    targets: patterns of the linear layers that get one, by name or its last part, such as [query, value] or
        [blocks.3.*] (empty: all in the blocks)
    """

    rank: int | None = None
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        positive("lora", rank=self.rank, alpha=self.alpha)
        fraction("lora", dropout=self.dropout)


class Adapters:
    """The adapters of a model."""

    def __init__(self, model: nn.Module, settings: LoraConfig) -> None:
        """Put them beside the layers; the first pass gives what the model gave without them.

        Raises:
            ConfigError: peft is not installed, or a pattern fits no linear layer.
        """
        peft = peft_package()
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=targets(model, settings.targets),
        )
        peft.inject_adapter_in_model(config, model)
        self.model = model
        kind = peft.tuners.lora.LoraLayer
        self.layers: dict[str, Any] = {n: module for n, module in model.named_modules() if isinstance(module, kind)}
        self.own: dict[str, Tensor] = {}  # weights of the layers themselves, while they are merged

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, the layers' weights have the adapters in them; after it they are what they were, to the last bit."""
        with torch.no_grad():
            for name, layer in self.layers.items():
                weight = layer.base_layer.weight
                self.own[f"{name}{ADAPTED}weight"] = weight.clone()
                weight.add_(layer.get_delta_weight(layer.active_adapters[0]))
                layer.enable_adapters(False)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, layer in self.layers.items():
                    layer.base_layer.weight.copy_(self.own.pop(f"{name}{ADAPTED}weight"))
                    layer.enable_adapters(True)

    def weights(self) -> dict[str, Tensor]:
        """The model's state as that of one without adapters; inside ``merged``, that of the merged model."""
        return {name.replace(ADAPTED, "."): tensor for name, tensor in self._items() if ADAPTER not in name}

    def complete(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What ``weights`` of the same model gave, by the names of this one, with the adapters that it has."""
        return {n: tensor if ADAPTER in n else weights[n.replace(ADAPTED, ".")] for n, tensor in self._items()}

    def state(self) -> dict[str, Tensor]:
        """Inside ``merged``: what the merged weights do not tell, the adapters and the layers' own weights."""
        return {**self.own, **{name: tensor for name, tensor in self._items() if ADAPTER in name}}

    def _items(self) -> Iterable[tuple[str, Tensor]]:
        return self.model.state_dict().items()


def peft_package() -> Any:
    """The peft library; a ConfigError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora.rank needs another package: pip install 'modular-gpt[peft]'") from error
    return peft


def targets(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names of the linear layers that patterns choose; without any, all in the blocks."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    spelled = [p if p in linear or "." in p or "*" in p else f"*.{p}" for p in patterns]
    return list(first_match(spelled or ["blocks.*"], linear, "lora.targets", "linear layer"))


def trained_parts(model: nn.Module, lora: LoraConfig, frozen: Sequence[str]) -> Adapters | None:
    """Give a model its adapters, where they are wished, and freeze what is to be frozen."""
    adapters = None if lora.rank is None else Adapters(model, lora)
    freeze(model, frozen)
    return adapters


def check_lora(settings: LoraConfig, checkpoint: Path) -> None:
    """Raise a CheckpointError where a run cannot go on with these settings."""
    run = read_json(checkpoint / META).get("run") or {}
    before = run.get("lora") or asdict(LoraConfig())
    changed = [f"lora.{name}={before.get(name)}" for name, now in asdict(settings).items() if before.get(name) != now]
    if changed:
        raise CheckpointError(
            f"'{checkpoint}' was trained with {', '.join(changed)}: go on with that, or start a new run from its merged"
            f" weights with init_from={checkpoint}"
        )


def restore_adapters(adapters: Adapters, checkpoint: Path) -> None:
    """Put adapters, and the weights beside which they stand, where a verified checkpoint left them."""
    adapters.model.load_state_dict(CheckpointReader(checkpoint).required_tensors(ADAPTERS), strict=False)
