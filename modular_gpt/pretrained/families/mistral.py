"""Mistral: https://arxiv.org/abs/2310.06825"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.llama_like import (
    DEFAULTS,
    LLAMA_RULES,
    LLAMA_SLOTS,
    decoder,
    decoder_to_hf,
    windows,
)
from modular_gpt.pretrained.family import Family, component_configs


def from_hf(settings: HFConfig) -> PlainDict:
    ours = decoder(settings)
    # with layer_types, which Ministral has, transformers takes its file for one of that family
    types = settings["layer_types"] or ["sliding_attention"] * settings["num_hidden_layers"]
    ours["attention"]["window"], ours["layers"] = windows(types, settings["sliding_window"])
    return ours


def to_hf(config: GPTConfig, layers: list[LayerConfig]) -> PlainDict:
    return {**decoder_to_hf(config, layers), "sliding_window": component_configs(layers[0])[0].window}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    rules=LLAMA_RULES,
    from_hf=from_hf,
    to_hf=to_hf,
    slots=LLAMA_SLOTS,
    defaults={
        **DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "layer_types": None,
    },
)
