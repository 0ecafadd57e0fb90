"""Llama: https://arxiv.org/abs/2407.21783"""

from typing import Any

from modular_gpt.pretrained.families.shared import DEFAULTS, LLAMA_RULES, decoder
from modular_gpt.pretrained.family import Family, Settings


def read(settings: Settings) -> dict[str, Any]:
    ours = decoder(settings)
    ours["attention"] |= {"qkv_bias": settings["attention_bias"], "out_bias": settings["attention_bias"]}
    ours["ffn"]["bias"] = settings["mlp_bias"]
    return ours


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=LLAMA_RULES,
    read=read,
    defaults={**DEFAULTS, "mlp_bias": False},
)
