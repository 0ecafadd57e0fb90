"""Description of a family of published models: its mapping, its files, and its class in transformers.

The tables of families are in families/, one file for each group of relatives.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from torch import Tensor

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import ModelMapping
from modular_gpt.model.config import GPTConfig
from modular_gpt.weights import View


@cache
def generated() -> PlainDict:
    """By model type: class, synonyms and defaults in transformers; docs/scripts/pretrained_defaults.py writes them."""
    content: PlainDict = json.loads((Path(__file__).parent / "families" / "defaults.json").read_text("utf-8"))
    return content


@dataclass(frozen=True)
class Family(ModelMapping):
    """One family of published models; ``defaults`` and ``synonyms`` complete those generated for the model type.

    ignored: regular expressions of names of tensors without learned values; {n_layers} is replaced by the number
    quantised: methods of quantisation that its files may have; tensors are dequantised when they are read
    tables: those tensors without learned values that files need, computed from the config
    views: conversions of the tensors of files before ``tensors`` are looked up, such as other names for them
    architecture: class of the language model in transformers, by default the one generated for the model type
    """

    ignored: tuple[str, ...] = ()
    quantised: tuple[str, ...] = ()
    tables: Callable[[GPTConfig], Mapping[str, Tensor]] = lambda config: {}
    views: tuple[View, ...] = ()
    architecture: str = ""

    def __post_init__(self) -> None:
        known = generated().get(self.model_type, {"architecture": "", "synonyms": {}, "settings": {}})
        synonyms = {**known["synonyms"], **self.synonyms}
        defaults = {synonyms.get(name, name): value for name, value in {**known["settings"], **self.defaults}.items()}
        for name, value in (
            ("architecture", self.architecture or known["architecture"]),
            ("synonyms", synonyms),
            ("defaults", defaults),
        ):
            object.__setattr__(self, name, value)

    @cached_property
    def prefix(self) -> str:
        """Prefix of the names of tensors, absent in files of the model without a head: that of the embedding."""
        name = next(rule.hf_name for rule in self.rules if rule.our_names == ("embedding.weight",))
        return f"{name.partition('.')[0]}."
