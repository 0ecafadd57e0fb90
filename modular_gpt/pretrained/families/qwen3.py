"""Qwen3: https://arxiv.org/abs/2505.09388"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families import qwen2
from modular_gpt.pretrained.families.llama_like import LAYER, LLAMA_RULES, LLAMA_SLOTS
from modular_gpt.pretrained.family import Family, component_configs
from modular_gpt.pretrained.tensor_map import TensorMapping


def from_hf(settings: HFConfig) -> PlainDict:
    ours = qwen2.from_hf(settings)
    bias = settings["attention_bias"]
    ours["attention"] |= {
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": "rmsnorm",
        "qk_norm_eps": settings["rms_norm_eps"],
    }
    return ours


def to_hf(config: GPTConfig, layers: list[LayerConfig]) -> PlainDict:
    return {**qwen2.to_hf(config, layers), "attention_bias": component_configs(layers[0])[0].qkv_bias}


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rules=(
        *LLAMA_RULES,
        TensorMapping(f"{LAYER}.self_attn.q_norm.weight", ("blocks.{layer}.attention.query_norm.weight",)),
        TensorMapping(f"{LAYER}.self_attn.k_norm.weight", ("blocks.{layer}.attention.key_norm.weight",)),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    slots=LLAMA_SLOTS,
    defaults={**qwen2.QWEN_DEFAULTS, "head_dim": 128, "attention_bias": False},
)
