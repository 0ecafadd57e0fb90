"""Mappings between published models and GPTModel, in both directions: keys of a config.json, and tensors."""

from modular_gpt.mapping.hf_config import ANY, HFConfig, harmless
from modular_gpt.mapping.layer_map import Flags, Pattern, by_names, by_number, layers
from modular_gpt.mapping.model_mapping import ModelMapping
from modular_gpt.mapping.setting_map import Keys, KeyTree, ModelView, PerLayer, key, lines
from modular_gpt.mapping.tensor_map import TensorMapping, TensorPair, Transform, expand, modules, tensors

__all__ = [
    "ANY",
    "Flags",
    "HFConfig",
    "KeyTree",
    "Keys",
    "ModelMapping",
    "ModelView",
    "Pattern",
    "PerLayer",
    "TensorMapping",
    "TensorPair",
    "Transform",
    "by_names",
    "by_number",
    "expand",
    "harmless",
    "key",
    "layers",
    "lines",
    "modules",
    "tensors",
]
