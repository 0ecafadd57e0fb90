"""Two-way mappings between published models and GPTModel: of the keys of a config.json, and of tensors."""

from modular_gpt.mapping.hf_config import ANY, HFConfig, harmless
from modular_gpt.mapping.model_mapping import ModelMapping
from modular_gpt.mapping.setting_map import Keys, KeyTree, ModelView, PerLayer, key, layers, lines
from modular_gpt.mapping.tensor_map import TensorMapping, TensorPair, Transform, expand, modules, tensors

__all__ = [
    "ANY",
    "HFConfig",
    "KeyTree",
    "Keys",
    "ModelMapping",
    "ModelView",
    "PerLayer",
    "TensorMapping",
    "TensorPair",
    "Transform",
    "expand",
    "harmless",
    "key",
    "layers",
    "lines",
    "modules",
    "tensors",
]
