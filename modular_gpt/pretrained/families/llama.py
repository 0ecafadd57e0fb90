"""Llama and the models that differ from it in few settings: https://arxiv.org/abs/2407.21783"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    ATTENTION_DROPOUT,
    FULL,
    INIT,
    LENGTH,
    RMSNORM,
    SIZES,
    SLIDING,
    all_of,
    biases,
    dense,
    heads,
    qk_norm,
    windows,
)
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import LLAMA, QK_NORM
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, ModelView, layer_count

START = (*SIZES, LENGTH, INIT, heads(), ATTENTION_DROPOUT)
BASE = (START, RMSNORM, dense(), rope())


def last_layers(settings: HFConfig) -> list[str]:
    """Layer types where the layers from ``max_window_layers`` on have a window."""
    first = settings["max_window_layers"]
    return [SLIDING if index >= first else FULL for index in range(layer_count(settings))]


def _window_of_all(view: ModelView) -> PlainDict:
    return {"sliding_window": view["attention@mha.window"]}


# with layer_types, which Ministral has, transformers takes a file of Mistral for one of that family
MISTRAL_WINDOW = Keys(windows(all_of(SLIDING)).from_hf, _window_of_all)
QWEN_WINDOWS = windows(last_layers, switch="use_sliding_window")

FAMILIES = [
    Family("llama", (START, RMSNORM, dense(bias="mlp_bias"), rope(), biases()), LLAMA),
    Family("mistral", (BASE, biases(False), MISTRAL_WINDOW), LLAMA),
    Family("qwen2", (BASE, biases(True, False), QWEN_WINDOWS), LLAMA),
    Family("qwen3", (BASE, biases(), QWEN_WINDOWS, qk_norm()), (*LLAMA, QK_NORM)),
]
