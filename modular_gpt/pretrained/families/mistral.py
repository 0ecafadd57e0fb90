"""Mistral: https://arxiv.org/abs/2310.06825"""

from typing import Any

from modular_gpt.pretrained.families.shared import DEFAULTS, LLAMA_RULES, decoder
from modular_gpt.pretrained.family import Family, Settings


def read(settings: Settings) -> dict[str, Any]:
    ours = decoder(settings)
    ours["attention"]["window"] = settings["sliding_window"]
    return ours


FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    rules=LLAMA_RULES,
    read=read,
    defaults={
        **DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
)
