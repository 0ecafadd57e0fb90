"""What the loader knows about one kind of published model; the kinds themselves are in families/."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.tensor_map import TensorMapping

Settings = Mapping[str, Any]  # of their config.json, with the defaults filled in


@dataclass(frozen=True)
class Family:
    """One kind of published model.

    model_type, architecture: as in their config.json
    rules: which tensor is which
    read: their settings -> ours, as ``GPTConfig.from_dict`` takes them
    write: ours and its layers with nulls resolved -> theirs, for kinds that can be saved; as near as it can come,
        since what ``read`` makes of it is compared with ours
    parts: the component of each slot, by name, where ``write`` is given
    defaults: what a setting is that their config.json leaves out
    prefix: of tensor names, absent in files of the bare model without a head
    ignored: regular expressions of tensor names that hold nothing learned; {n_layers} is filled in
    """

    model_type: str
    architecture: str
    rules: tuple[TensorMapping, ...]
    read: Callable[[Settings], dict[str, Any]]
    defaults: Mapping[str, Any]
    write: Callable[[GPTConfig, list[LayerConfig]], dict[str, Any]] | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    prefix: str = "model."
    ignored: tuple[str, ...] = field(default=(r".*rotary_emb\.inv_freq",))


ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}


def activation(name: str) -> str:
    """Our name of their activation function."""
    if name not in ACTIVATIONS:
        raise CheckpointError(unknown("activation function", str(name), ACTIVATIONS))
    return ACTIVATIONS[name]


def parts(layer: LayerConfig) -> tuple[Any, Any, Any, Any]:
    """The settings of attention, ffn, norm and pos, for a family that knows which settings its parts have."""
    return layer.attention, layer.ffn, layer.norm, layer.pos


def their_activation(name: str) -> str:
    """Their name of our activation function; ours, which they do not know, where they have none."""
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == name), name)


def dropout(settings: Settings, name: str, embeddings: str | None = None) -> float:
    """The rate after attention and ffn; with a warning where that of the ``embeddings``, which get it too, differs."""
    rate, theirs = float(settings[name]), float(settings[embeddings]) if embeddings else 0.0
    if rate != theirs:
        has = f"{embeddings}={theirs}" if embeddings else "none"
        warnings.warn(
            f"while training, the embeddings get the dropout {name}={rate}, where the checkpoint has {has}",
            stacklevel=2,
        )
    return rate


def must_be(settings: Settings, **only: Any) -> None:
    """Refuse a checkpoint with a setting that has no counterpart here."""
    for name, value in only.items():
        if settings[name] != value:
            raise CheckpointError(
                f"the checkpoint has {name}={settings[name]!r}, which is not supported: only {value!r} is"
            )
