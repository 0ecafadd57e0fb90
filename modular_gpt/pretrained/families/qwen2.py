"""Qwen2: https://arxiv.org/abs/2407.10671"""

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
    windows_to_hf,
)
from modular_gpt.pretrained.family import Family


def from_hf(settings: HFConfig) -> PlainDict:
    ours = decoder(settings)
    width = settings["sliding_window"]
    window, ours["layers"] = windows(layer_types(settings), width if settings["use_sliding_window"] else None)
    ours["attention"] |= {"qkv_bias": True, "out_bias": False, "window": window}
    return ours


def layer_types(settings: HFConfig) -> list[str]:
    """The attention type of each layer; by default, layers from ``max_window_layers`` on have the window."""
    first, types = settings["max_window_layers"], settings["layer_types"]
    if types is not None:
        out: list[str] = types
        return out
    return [
        "sliding_attention" if index >= first else "full_attention" for index in range(settings["num_hidden_layers"])
    ]


def to_hf(config: GPTConfig, layers: list[LayerConfig]) -> PlainDict:
    return {**decoder_to_hf(config, layers), **windows_to_hf(layers)}


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
    from_hf=from_hf,
    to_hf=to_hf,
    slots=LLAMA_SLOTS,
    defaults=QWEN_DEFAULTS,
)
