"""Qwen2: https://arxiv.org/abs/2407.10671"""

from typing import Any

from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.families.llama_like import (
    DEFAULTS,
    LLAMA_PARTS,
    LLAMA_RULES,
    decoder,
    decoder_written,
    windows,
    windows_written,
)
from modular_gpt.pretrained.family import Family, Settings


def read(settings: Settings) -> dict[str, Any]:
    ours = decoder(settings)
    width = settings["sliding_window"] if settings["use_sliding_window"] else None
    window, ours["layers"] = windows(layer_types(settings), width)
    ours["attention"] |= {"qkv_bias": True, "out_bias": False, "window": window}
    return ours


def layer_types(settings: Settings) -> list[str]:
    """The kind of each layer; unless written out, those from ``max_window_layers`` on have the window."""
    if settings["layer_types"] is not None:
        return settings["layer_types"]
    first = settings["max_window_layers"]
    return [
        "sliding_attention" if index >= first else "full_attention" for index in range(settings["num_hidden_layers"])
    ]


def write(config: GPTConfig, layers: list[LayerConfig]) -> dict[str, Any]:
    return {**decoder_written(config, layers), **windows_written(layers)}


QWEN_DEFAULTS = {
    **DEFAULTS,
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    rules=LLAMA_RULES,
    read=read,
    write=write,
    parts=LLAMA_PARTS,
    defaults=QWEN_DEFAULTS,
)
