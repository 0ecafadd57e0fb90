"""The published kinds of model that can be read, one file each."""

from modular_gpt.pretrained.families import (
    bloom,
    deepseek_v2,
    deepseek_v3,
    gemma2,
    gpt2,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    mpt,
    qwen2,
    qwen3,
)
from modular_gpt.pretrained.family import Family

_MODULES = (
    gpt2,
    llama,
    mistral,
    qwen2,
    qwen3,
    mixtral,
    deepseek_v2,
    deepseek_v3,
    bloom,
    mpt,
    gemma2,
    gpt_oss,
)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in _MODULES}
