"""Description of a family of published models: mappings of its config.json and tensors; instances are in families/."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modular_gpt.core.errors import CheckpointError, UserError, printable, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.config_map import HFConfig, check_all_read
from modular_gpt.pretrained.tensor_map import TensorMapping


@dataclass(frozen=True)
class Family:
    """One family of published models.

    model_type, architecture: as in its config.json
    rules: mappings between the tensors of its files and ours
    from_hf: its settings -> ours, as input of ``GPTConfig.from_dict``
    to_hf: our config and its layers with nulls resolved -> its settings; None: the family cannot be written. It may be
        approximate: the result is read back with ``from_hf`` and compared with the config
    slots: name of the component of each slot, where ``to_hf`` is given
    defaults: values of settings that are missing in its config.json
    synonyms: other names of settings -> the name in ``defaults``
    harmless: settings that change no logits in this family: name -> ANY, or the values at which they change nothing
    layers: name of the setting with the number of layers
    prefix: prefix of tensor names, absent in files of the model without a head
    ignored: regular expressions of names of tensors without learned values; {n_layers} is replaced by the number
    """

    model_type: str
    architecture: str
    rules: tuple[TensorMapping, ...]
    from_hf: Callable[[HFConfig], PlainDict]
    defaults: PlainMapping
    to_hf: Callable[[GPTConfig, list[LayerConfig]], PlainDict] | None = None
    slots: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)
    harmless: PlainMapping = field(default_factory=dict)
    layers: str = "num_hidden_layers"
    prefix: str = "model."
    ignored: tuple[str, ...] = field(default=(r".*rotary_emb\.inv_freq",))

    def settings(self, given: PlainMapping) -> HFConfig:
        """The settings of a config.json with synonyms replaced and this family's defaults.

        Raises:
            CheckpointError: two names of one setting have different values.
        """
        given = dict(given)
        for synonym, name in self.synonyms.items():
            if synonym not in given:
                continue
            value = given.pop(synonym)
            if given.setdefault(name, value) != value:
                raise CheckpointError(f"the checkpoint has {name}={given[name]!r} and {synonym}={value!r}: remove one")
        return HFConfig(given, self.defaults)

    def config(self, given: PlainMapping) -> GPTConfig:
        """Convert the settings of a config.json to a GPTConfig.

        Raises:
            CheckpointError: a setting is neither read nor known to be harmless, or has no counterpart here.
            ConfigError: a setting is out of range.
        """
        settings = self.settings(given)
        try:
            ours = self.from_hf(settings)
        except UserError:
            raise
        except KeyError as error:
            raise CheckpointError(f"config.json of this {self.model_type} model lacks the setting {error}") from error
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError) as error:
            raise CheckpointError(
                f"config.json of this {self.model_type} model has a setting of a wrong type or size:"
                f" {printable(str(error))}"
            ) from error
        config = GPTConfig.from_dict(ours)
        check_all_read(settings, self.harmless, self.model_type)
        return config


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
    """Our name of an activation function of transformers. Raises CheckpointError if there is none."""
    if name not in ACTIVATIONS:
        raise CheckpointError(unknown("activation function", str(name), ACTIVATIONS))
    return ACTIVATIONS[name]


def component_configs(layer: LayerConfig) -> tuple[Any, Any, Any, Any]:
    """The configs of attention, ffn, norm and pos, untyped, for a family with fixed component classes."""
    return layer.attention, layer.ffn, layer.norm, layer.pos


def hf_activation(name: str) -> str:
    """The name in transformers of our activation function; ours, if transformers has none."""
    return next((hf_name for hf_name, our_name in ACTIVATIONS.items() if our_name == name), name)


def dropout(settings: HFConfig, name: str, embeddings: str | None = None) -> float:
    """The dropout rate after attention and ffn, which ours also uses for ``embeddings``; warns if theirs differs."""
    rate, embedding_rate = float(settings[name]), float(settings[embeddings]) if embeddings else 0.0
    if rate != embedding_rate:
        has = f"{embeddings}={embedding_rate}" if embeddings else "none"
        warnings.warn(
            f"while training, the embeddings get the dropout {name}={rate}, where the checkpoint has {has}",
            stacklevel=2,
        )
    return rate


def must_be(settings: HFConfig, **only: Any) -> None:
    """Raise a CheckpointError if a setting has another value than the one that is supported."""
    for name, value in only.items():
        if settings[name] != value:
            raise CheckpointError(
                f"the checkpoint has {name}={settings[name]!r}, which is not supported: only {value!r} is"
            )
