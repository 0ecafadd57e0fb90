"""Gemma and its relatives: https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118 (Gemma 2)"""

import math

from modular_gpt.mapping import key, modules
from modular_gpt.mapping.setting_map import computed, only, rounded
from modular_gpt.pretrained.families import tensor_names as names
from modular_gpt.pretrained.families.decoder_keys import START, biases, dense, every, norm, qk_norm, windows
from modular_gpt.pretrained.families.rope_config import rope, rope_by_type
from modular_gpt.pretrained.family import Family

NORM = norm("rmsnorm", "rms_norm_eps", weight_offset=True)
EMBED_SCALE = computed("embed_scale", lambda settings: math.sqrt(settings["hidden_size"]))
SCALE = key("query_pre_attn_scalar", "attention@mha.scale", lambda q: q**-0.5, lambda scale: rounded(scale**-2))
GEMMA = (START, NORM, dense(), rope(), biases(), EMBED_SCALE)
SCALED = (START, NORM, dense(act="hidden_activation"), biases(), EMBED_SCALE, SCALE)
CAPPED = "final_logit_softcapping = logit_softcap"
GEMMA2 = (SCALED, CAPPED, rope(), "attn_logit_softcapping = attention@mha.softcap", windows(every(2)))
CAUSAL, SANDWICH = only(use_bidirectional_attention=None), {"block.topology": "sandwich"}
PATTERN = every(6, "sliding_window_pattern")
GEMMA3 = (
    (SCALED, CAPPED, rope_by_type(PATTERN, ("rope_theta", "rope_local_base_freq")), windows(PATTERN), SANDWICH),
    qk_norm(weight_offset=True),
    # transformers reads the first of these keys, and computes without it
    only(attn_logit_softcapping=None, use_bidirectional_attention=False),
)
BEFORE = modules("{input,pre_feedforward}_layernorm = {attention,ffn}_norm", names.LAYER)
SANDWICHED = (names.ENDS, names.SANDWICH_NORMS, names.ATTENTION, names.GATED)

FAMILIES = [
    Family("gemma", (GEMMA, CAUSAL), names.LLAMA),
    Family("gemma2", (GEMMA2, SANDWICH, CAUSAL), SANDWICHED),
    Family("gemma3_text", GEMMA3, (*SANDWICHED, names.QK_NORM)),
    Family("vaultgemma", GEMMA2, (names.ENDS, BEFORE, names.ATTENTION, names.GATED)),
]
