"""Qwen3: https://arxiv.org/abs/2505.09388"""

from typing import Any

from modular_gpt.pretrained.families import qwen2
from modular_gpt.pretrained.families.shared import LAYER, LLAMA_RULES
from modular_gpt.pretrained.family import Family, Settings
from modular_gpt.pretrained.rules import Rule


def read(settings: Settings) -> dict[str, Any]:
    ours = qwen2.read(settings)
    bias = settings["attention_bias"]
    ours["attention"] |= {
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": "rmsnorm",
        "qk_norm_eps": settings["rms_norm_eps"],
    }
    return ours


FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rules=(
        *LLAMA_RULES,
        Rule(f"{LAYER}.self_attn.q_norm.weight", ("blocks.{layer}.attention.query_norm.weight",)),
        Rule(f"{LAYER}.self_attn.k_norm.weight", ("blocks.{layer}.attention.key_norm.weight",)),
    ),
    read=read,
    defaults={**qwen2.QWEN_DEFAULTS, "head_dim": 128, "attention_bias": False},
)
