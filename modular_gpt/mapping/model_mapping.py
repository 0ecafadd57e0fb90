"""Two-way mapping of one type of published models: the keys of its config.json and its tensors."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from modular_gpt.core.errors import CheckpointError, UserError, printable
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.mapping.hf_config import HFConfig, check_all_read
from modular_gpt.mapping.setting_map import WRONG_VALUE, Keys, KeyTree, ModelView, flattened, read_keys, write_keys
from modular_gpt.mapping.tensor_map import TensorMapping
from modular_gpt.model.config import BlockConfig, GPTConfig
from modular_gpt.model.differences import differences, other_components


class Comparison(NamedTuple):
    """The settings of a model that a type cannot express, as ``name=value``, and a distance to sort types by."""

    missing: list[str]
    distance: tuple[bool, int, bool]


@dataclass(frozen=True)
class ModelMapping:
    """Mappings between published models of one type and GPTModel.

    model_type: as in its config.json
    keys: mappings between its keys and our settings, in nested sequences; later ones override earlier ones
    tensors: mappings between the tensors of its files and ours, in sequences
    harmless: keys that change no logits in this type: name -> ANY, or the values at which they change nothing
    defaults, synonyms: values of keys that its config.json omits, and other names of keys
    """

    model_type: str
    keys: KeyTree
    tensors: Sequence[Sequence[TensorMapping]]
    harmless: PlainMapping = field(default_factory=dict)
    defaults: PlainMapping = field(default_factory=dict)
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def mappings(self) -> tuple[Keys, ...]:
        """The mappings of keys without their nesting."""
        return tuple(flattened(self.keys))

    @cached_property
    def rules(self) -> tuple[TensorMapping, ...]:
        """The mappings of tensors without their nesting."""
        return tuple(mapping for group in self.tensors for mapping in group)

    @cached_property
    def usual_layers(self) -> list[list[BlockConfig]]:
        """The layers of the default config of this type, as alternatives for every layer; empty if there is none."""
        try:
            return [self.config({}).layer_configs]
        except UserError:  # a key without default
            return [[]]

    @property
    def layers(self) -> str:
        """The key with the number of layers."""
        return self.synonyms.get("num_hidden_layers", "num_hidden_layers")

    def settings(self, given: PlainMapping) -> HFConfig:
        """The settings of a config.json with synonyms replaced and the defaults of this type.

        Raises:
            CheckpointError: two names of one setting have different values.
        """
        given = dict(given)
        for synonym, name in self.synonyms.items():
            if synonym not in given:
                continue
            value = given.pop(synonym)
            if given.setdefault(name, value) != value:
                left, right = (printable(repr(found)) for found in (given[name], value))
                raise CheckpointError(f"the checkpoint has {name}={left} and {synonym}={right}: remove one of them")
        return HFConfig(given, self.defaults, synonyms=self.synonyms)

    def config(self, given: PlainMapping) -> GPTConfig:
        """Convert the settings of a config.json to a GPTConfig.

        Raises:
            CheckpointError: a setting is neither read nor known to be harmless, or has no counterpart here.
            ConfigError: a setting is out of range.
        """
        settings = self.settings(given)
        try:
            our_settings = read_keys(self.mappings, settings)
        except UserError:
            raise
        except KeyError as error:
            raise CheckpointError(f"config.json of this {self.model_type} model lacks the setting {error}") from error
        except (*WRONG_VALUE, MemoryError) as error:
            raise CheckpointError(
                f"config.json of this {self.model_type} model has a setting of a wrong type or size:"
                f" {printable(str(error))}"
            ) from error
        config = GPTConfig.from_dict(our_settings)
        check_all_read(settings, self.harmless, self.model_type)
        return config

    def to_hf(self, config: GPTConfig) -> PlainDict:
        """Convert our config to keys of a config.json, approximately where this type cannot express it.

        Raises:
            CheckpointError: a value has no counterpart.
        """
        try:
            return write_keys(self.mappings, ModelView(config, self.defaults, self.synonyms))
        except WRONG_VALUE as error:
            raise CheckpointError(f"{self.model_type} has no counterpart of a setting: {error}") from error

    def compared(self, config: GPTConfig) -> Comparison:
        """Write the keys of a config, read them back, and compare the result with ``config``."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of dropout, which is not compared
                back = self.config(self.to_hf(config))
        except UserError as error:
            others = other_components(config, self.usual_layers)
            missing = others or [f"a setting ({error})"]
            return Comparison(missing, (bool(others), len(missing), True))
        others = other_components(config, [[layer] for layer in back.layer_configs])
        missing = others or list(differences(config, back))
        return Comparison(missing, (bool(others), len(missing), False))
