"""Llama: https://arxiv.org/abs/2407.21783"""

from typing import Any

from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.families.llama_like import DEFAULTS, LLAMA_PARTS, LLAMA_RULES, decoder, decoder_written
from modular_gpt.pretrained.family import Family, Settings, parts


def read(settings: Settings) -> dict[str, Any]:
    ours = decoder(settings)
    ours["attention"] |= {"qkv_bias": settings["attention_bias"], "out_bias": settings["attention_bias"]}
    ours["ffn"]["bias"] = settings["mlp_bias"]
    return ours


def write(config: GPTConfig, layers: list[LayerConfig]) -> dict[str, Any]:
    attention, ffn, _, _ = parts(layers[0])
    return {**decoder_written(config, layers), "attention_bias": attention.qkv_bias, "mlp_bias": ffn.bias}


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=LLAMA_RULES,
    read=read,
    write=write,
    parts=LLAMA_PARTS,
    defaults={**DEFAULTS, "mlp_bias": False},
)
