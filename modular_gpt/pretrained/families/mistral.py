"""Mistral: https://arxiv.org/abs/2310.06825"""

from typing import Any

from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.families.llama_like import DEFAULTS, LLAMA_PARTS, LLAMA_RULES, decoder, decoder_written
from modular_gpt.pretrained.family import Family, Settings, parts


def read(settings: Settings) -> dict[str, Any]:
    ours = decoder(settings)
    ours["attention"]["window"] = settings["sliding_window"]
    return ours


def write(config: GPTConfig, layers: list[LayerConfig]) -> dict[str, Any]:
    return {**decoder_written(config, layers), "sliding_window": parts(layers[0])[0].window}


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    rules=LLAMA_RULES,
    read=read,
    write=write,
    parts=LLAMA_PARTS,
    defaults={
        **DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)
