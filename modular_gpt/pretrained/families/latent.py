"""Families with multi-head latent attention: https://arxiv.org/abs/2405.04434 (DeepSeek-V2)"""

import math

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping.hf_config import ANY, HFConfig, harmless
from modular_gpt.mapping.setting_map import Keys, ModelView, always, key, layer_count, lines, only, rounded, switch
from modular_gpt.mapping.tensor_map import STACKED_ROWS, tensors, where
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families import expert_keys as experts
from modular_gpt.pretrained.families import rope_config
from modular_gpt.pretrained.families import tensor_names as names
from modular_gpt.pretrained.families.rope_config import rope, rope_parameters, temperature, yarn_magnitude
from modular_gpt.pretrained.families.tensor_names import LATENT_ATTENTION, MLP, ROUTER
from modular_gpt.pretrained.family import Family

SCALE, LAYOUT = "attention@mla.scale", "pos@rope.layout"
START = (keys.SIZES, keys.LENGTH, keys.INIT, keys.RMSNORM, keys.dense())


def _head_width(settings: HFConfig) -> int:
    width: int = settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"]
    return width


def _read_attention(settings: HFConfig) -> PlainDict:
    biased = settings["attention_bias"]
    if biased and settings["q_lora_rank"] is None:
        raise CheckpointError("the checkpoint has attention_bias=true without q_lora_rank, which is not supported")
    if settings["num_key_value_heads"] not in (None, settings["num_attention_heads"]):
        raise CheckpointError(
            "the checkpoint has fewer key/value heads than query heads, which latent attention has not"
        )
    given = rope_parameters(settings)
    magnitude = yarn_magnitude(given.get("factor") or 1.0, given.get("mscale_all_dim") or 0.0)
    return {
        "attention.name": "mla",
        SCALE: _head_width(settings) ** -0.5 * magnitude**2,
        **{f"attention@mla.{name}_bias": biased for name in ("qkv", "out")},
    }


def _mscale(view: ModelView) -> PlainDict:
    """DeepSeek's weight on the logarithm of yarn's factor, from the scale of scores."""
    scaling = view["pos@rope.scaling"]
    if not scaling or scaling["kind"] != "yarn" or scaling["factor"] <= 1 or not view[SCALE]:
        return {}
    width = view["attention@mla.qk_nope_head_dim"] + view["attention@mla.qk_rope_head_dim"]
    magnitude = (view[SCALE] * width**0.5) ** 0.5
    return {"mscale_all_dim": (magnitude - 1) / (yarn_magnitude(scaling["factor"], 1.0) - 1)} if magnitude != 1 else {}


_RANKS = "kv_lora_rank,q_lora_rank,qk_nope_head_dim,qk_rope_head_dim,v_head_dim"
LATENT = (
    Keys(
        _read_attention, lambda v: {"attention_bias": v["attention@mla.qkv_bias"], "num_key_value_heads": v["n_heads"]}
    ),
    lines(f"{{{_RANKS}}} = attention@mla.{{{_RANKS}}}"),
    keys.ATTENTION_DROPOUT,
)
INTERLEAVED_KEY = switch("rope_interleave", LAYOUT, "interleaved", "half")
ROTARY_LATENT = (rope(width="qk_rope_head_dim", extra=_mscale), LATENT)


def _read_groups(settings: HFConfig) -> PlainDict:
    if settings["topk_method"] == "group_limited_greedy":
        return {"ffn@moe.groups": settings["n_group"], "ffn@moe.top_groups": settings["topk_group"]}
    if settings["topk_method"] != "greedy":
        raise CheckpointError(
            f"the checkpoint has topk_method={printable(repr(settings['topk_method']))}, which is not supported"
        )
    settings.ignore("n_group", "topk_group")
    return {}


def _write_groups(view: ModelView) -> PlainDict:
    groups = view["ffn@moe.groups"] or 1
    if groups == 1:
        return {"topk_method": "greedy"}
    return {"topk_method": "group_limited_greedy", "n_group": groups, "topk_group": view["ffn@moe.top_groups"]}


V2 = (
    (experts.experts("n_routed_experts"), experts.moe(norm_topk=False), experts.router_loss("aux_loss_alpha")),
    (experts.SCALE, experts.shared("n_shared_experts"), Keys(_read_groups, _write_groups), experts.FIRST_DENSE),
    (only(norm_topk_prob=False, mlp_bias=False), always({LAYOUT: "interleaved"})),
)
MINICPM = (
    key("scale_emb", "embed_scale", float, rounded),
    Keys(
        lambda s: {"residual_multiplier": s["scale_depth"] / math.sqrt(layer_count(s))},
        lambda view: {"scale_depth": view["residual_multiplier"] * math.sqrt(view["n_layers"])},
    ),
    Keys(
        lambda s: {"logit_scale": s["dim_model_base"] / s["hidden_size"]},
        lambda view: {"dim_model_base": rounded(view["logit_scale"] * view["d_model"])},
    ),
    only(mlp_bias=False),
    always({LAYOUT: "half"}),
)
MISTRAL4 = (
    rope(
        width="qk_rope_head_dim",
        fraction_of=_head_width,
        extra=lambda view: {**_mscale(view), **rope_config.temperature_to_hf(view)},
    ),
    (LATENT, INTERLEAVED_KEY, temperature("mla"), experts.FIRST_DENSE, experts.ROUTED, experts.moe(group_score="top2")),
)
DENSE = (names.ENDS, names.PRE_NORMS, names.GATED, LATENT_ATTENTION)
TENSORS = (*DENSE, names.experts())
# one tensor for the gates and ups of all experts
STACKED = [
    *where(ROUTER, tensors("experts.gate_up_proj = ffn.gate + ffn.up", MLP, STACKED_ROWS)),
    *where(ROUTER, tensors("experts.down_proj = ffn.down", MLP)),
    *names.experts(matrices=""),
]
# keys of their files that transformers does not read
UNUSED = harmless("qk_head_dim head_dim", moe_layer_freq=1)
FURTHER_LAYER = (r"model\.layers\.{n_layers}\..*",)  # after the last one, to predict a further token while training

FAMILIES = [
    Family(
        "deepseek_v2",
        (START, ROTARY_LATENT, V2),
        TENSORS,
        harmless={**UNUSED, "scoring_func": ("softmax",), "rope_interleave": (True,)},
        defaults={"aux_loss_alpha": 0.001},
    ),
    Family(
        "deepseek_v3",
        (START, ROTARY_LATENT, experts.DEEPSEEK_V3, experts.FIRST_DENSE, INTERLEAVED_KEY),
        TENSORS,
        harmless={**UNUSED, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
        ignored=FURTHER_LAYER,
    ),
    Family(
        "youtu",
        (keys.SIZES, keys.LENGTH, keys.RMSNORM, keys.dense(), ROTARY_LATENT, INTERLEAVED_KEY),
        DENSE,
        harmless={**UNUSED, "initializer_range": ANY},
    ),
    Family("minicpm3", (START, ROTARY_LATENT, MINICPM), DENSE, harmless=UNUSED),
    Family(
        "glm4_moe_lite",
        (START, ROTARY_LATENT, experts.DEEPSEEK_V3, experts.AFTER_FIRST, INTERLEAVED_KEY),
        TENSORS,
        harmless=UNUSED,
        ignored=FURTHER_LAYER,
    ),
    Family(
        "mistral4",
        (START, MISTRAL4),
        (*DENSE, STACKED),
        harmless={**UNUSED, "rope_parameters.max_position_embeddings": ANY},
    ),
]
