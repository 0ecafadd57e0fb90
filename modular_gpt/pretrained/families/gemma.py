"""Gemma and its relatives: https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118 (Gemma 2)"""

import math

from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.decoder_keys import biases, dense, every, norm, only, qk_norm, rounded, windows
from modular_gpt.pretrained.families.llama import START
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import (
    ATTENTION,
    ENDS,
    GATED,
    LAYER,
    LLAMA,
    QK_NORM,
    SANDWICH_NORMS,
    in_layer,
)
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, always, key

NORM = norm("rmsnorm", "rms_norm_eps", weight_offset=True)
EMBED_SCALE = Keys(lambda settings: {"embed_scale": math.sqrt(settings["hidden_size"])})
LOGIT_SOFTCAP = key("final_logit_softcapping", "logit_softcap")
SOFTCAP = key("attn_logit_softcapping", "attention@mha.softcap")
SCALE = key("query_pre_attn_scalar", "attention@mha.scale", lambda q: q**-0.5, lambda scale: rounded(scale**-2))
SANDWICH = always({"block.topology": "sandwich"})
GEMMA2 = (
    START,
    NORM,
    dense(act="hidden_activation"),
    biases(),
    EMBED_SCALE,
    SCALE,
    key("final_logit_softcapping", "logit_softcap"),
)


def every_pattern(settings: HFConfig) -> list[str]:
    """Layer types where every sixth, or sliding_window_pattern-th, layer attends to all tokens."""
    return list(every(settings.get("sliding_window_pattern") or 6)(settings))


# transformers reads the first of these keys, and computes without it
GEMMA3 = only(attn_logit_softcapping=None, use_bidirectional_attention=False)
GEMMA3_ROPE = rope(per_type=every_pattern, older=("rope_theta", "rope_local_base_freq"))
CAUSAL = only(use_bidirectional_attention=None)
PRE_FEEDFORWARD = in_layer(LAYER, attention_norm="input_layernorm", ffn_norm="pre_feedforward_layernorm")

FAMILIES = [
    Family("gemma", (START, NORM, dense(), rope(), biases(), EMBED_SCALE, CAUSAL), LLAMA),
    Family(
        "gemma2",
        (GEMMA2, rope(), SOFTCAP, windows(every(2)), SANDWICH, CAUSAL),
        (ENDS, SANDWICH_NORMS, ATTENTION, GATED),
    ),
    Family(
        "gemma3_text",
        (GEMMA2, GEMMA3_ROPE, windows(every_pattern), SANDWICH, qk_norm(weight_offset=True), GEMMA3),
        (ENDS, SANDWICH_NORMS, ATTENTION, QK_NORM, GATED),
    ),
    Family("vaultgemma", (GEMMA2, rope(), SOFTCAP, windows(every(2))), (ENDS, PRE_FEEDFORWARD, ATTENTION, GATED)),
]
