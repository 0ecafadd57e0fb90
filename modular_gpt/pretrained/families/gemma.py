"""Gemma and its relatives: https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118 (Gemma 2)"""

import math

from modular_gpt.pretrained.config_map import ANY
from modular_gpt.pretrained.families.decoder_keys import biases, dense, every, norm, only, rounded, windows
from modular_gpt.pretrained.families.llama import START
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import ATTENTION, ENDS, GATED, SANDWICH_NORMS
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, always, key

NORM = norm("rmsnorm", "rms_norm_eps", weight_offset=True)
EMBED_SCALE = Keys(lambda settings: {"embed_scale": math.sqrt(settings["hidden_size"])})
SOFTCAPS = (
    key("attn_logit_softcapping", "attention@mha.softcap"),
    key("final_logit_softcapping", "logit_softcap"),
)
SCALE = key("query_pre_attn_scalar", "attention@mha.scale", lambda q: q**-0.5, lambda scale: rounded(scale**-2))
SANDWICH = always({"block.topology": "sandwich"})
GEMMA2 = (START, NORM, dense(act="hidden_activation"), biases(), EMBED_SCALE, SCALE, SOFTCAPS)

FAMILIES = [
    Family(
        "gemma2",
        (GEMMA2, rope(), windows(every(2)), SANDWICH, only(use_bidirectional_attention=None)),
        (ENDS, SANDWICH_NORMS, ATTENTION, GATED),
        harmless={"cache_implementation": ANY},
    ),
]
