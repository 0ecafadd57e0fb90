"""Llama: https://arxiv.org/abs/2407.21783"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.llama_like import DEFAULTS, LLAMA_RULES, LLAMA_SLOTS, decoder, decoder_to_hf
from modular_gpt.pretrained.family import Family, component_configs


def from_hf(settings: HFConfig) -> PlainDict:
    ours = decoder(settings)
    ours["attention"] |= {"qkv_bias": settings["attention_bias"], "out_bias": settings["attention_bias"]}
    ours["ffn"]["bias"] = settings["mlp_bias"]
    return ours


def to_hf(config: GPTConfig, layers: list[LayerConfig]) -> PlainDict:
    attention, ffn, _, _ = component_configs(layers[0])
    return {**decoder_to_hf(config, layers), "attention_bias": attention.qkv_bias, "mlp_bias": ffn.bias}


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=LLAMA_RULES,
    from_hf=from_hf,
    to_hf=to_hf,
    slots=LLAMA_SLOTS,
    defaults={**DEFAULTS, "mlp_bias": False},
)
