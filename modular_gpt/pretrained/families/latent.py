"""Families with multi-head latent attention: https://arxiv.org/abs/2405.04434 (DeepSeek-V2)"""

import math

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import HFConfig, Keys, ModelView, harmless, key, tensors
from modular_gpt.mapping.setting_map import joined, layer_count, only, rounded, switch
from modular_gpt.mapping.tensor_map import STACKED_ROWS, where
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families import expert_keys as experts
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
    if settings["attention_bias"] and settings["q_lora_rank"] is None:
        raise CheckpointError("the checkpoint has attention_bias=true without q_lora_rank, which is not supported")
    if settings["num_key_value_heads"] not in (None, settings["num_attention_heads"]):
        raise CheckpointError(
            "the checkpoint has fewer key/value heads than query heads, which latent attention has not"
        )
    given = rope_parameters(settings)
    magnitude = yarn_magnitude(given.get("factor") or 1.0, given.get("mscale_all_dim") or 0.0)
    return {"attention.name": "mla", SCALE: _head_width(settings) ** -0.5 * magnitude**2}


def _mscale(view: ModelView) -> PlainDict:
    """DeepSeek's weight on the logarithm of yarn's factor, from the scale of scores."""
    scaling = view["pos@rope.scaling"]
    if not scaling or scaling["kind"] != "yarn" or scaling["factor"] <= 1 or not view[SCALE]:
        return {}
    width = view["attention@mla.qk_nope_head_dim"] + view["attention@mla.qk_rope_head_dim"]
    weight = ((view[SCALE] * width**0.5) ** 0.5 - 1) / (yarn_magnitude(scaling["factor"], 1.0) - 1)
    return {"rope_parameters.mscale_all_dim": weight} if weight else {}


_RANKS = "kv_lora_rank,q_lora_rank,qk_nope_head_dim,qk_rope_head_dim,v_head_dim"
LATENT = (
    Keys(_read_attention, lambda view: {"num_key_value_heads": view["n_heads"]}),
    (f"{{{_RANKS}}} = attention@mla.{{{_RANKS}}}", "attention_bias = attention@mla.{qkv,out}_bias"),
    keys.ATTENTION_DROPOUT,
)
INTERLEAVED_KEY = switch("rope_interleave", LAYOUT, "interleaved", "half")
MSCALE = Keys(to_hf=_mscale)
ROTARY_LATENT = (rope(width="qk_rope_head_dim"), MSCALE, LATENT)
GROUPS, GROUPED = joined(experts.GROUPS), "group_limited_greedy"


def _read_groups(settings: HFConfig) -> PlainDict:
    method, groups = settings["topk_method"], GROUPS.from_hf(settings)
    if method not in (GROUPED, "greedy"):
        raise CheckpointError(f"the checkpoint has topk_method={printable(repr(method))}, which is not supported")
    return {**groups} if method == GROUPED else {}


def _write_groups(view: ModelView) -> PlainDict:
    grouped = (view["ffn@moe.groups"] or 1) > 1
    return {"topk_method": GROUPED, **GROUPS.to_hf(view)} if grouped else {"topk_method": "greedy"}


V2 = (
    (experts.experts("n_routed_experts"), experts.moe(norm_topk=False), experts.router_loss("aux_loss_alpha")),
    (experts.SCALE, experts.shared("n_shared_experts"), Keys(_read_groups, _write_groups), experts.FIRST_DENSE),
    (only(norm_topk_prob=False, mlp_bias=False), {LAYOUT: "interleaved"}),
)
V3 = (START, ROTARY_LATENT, experts.DEEPSEEK_V3, INTERLEAVED_KEY)
MINICPM = (
    key("scale_emb", "embed_scale", to_hf=rounded),
    Keys(
        lambda s: {"residual_multiplier": s["scale_depth"] / math.sqrt(layer_count(s))},
        lambda view: {"scale_depth": view["residual_multiplier"] * math.sqrt(view["n_layers"])},
    ),
    Keys(
        lambda s: {"logit_scale": s["dim_model_base"] / s["hidden_size"]},
        lambda view: {"dim_model_base": rounded(view["logit_scale"] * view["d_model"])},
    ),
    (only(mlp_bias=False), {LAYOUT: "half"}),
)
MISTRAL4 = (
    (rope(width="qk_rope_head_dim", fraction_of=_head_width), MSCALE, LATENT, INTERLEAVED_KEY, temperature("mla")),
    (experts.FIRST_DENSE, experts.ROUTED, experts.moe(group_score="top2")),
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
V2_UNUSED = harmless(scoring_func="softmax", rope_interleave=True)
V3_UNUSED = harmless(scoring_func="sigmoid", topk_method="noaux_tc")
FURTHER_LAYER = (r"model\.layers\.{n_layers}\..*",)  # after the last one, to predict a further token while training

FAMILIES = [
    Family(
        "deepseek_v2",
        (START, ROTARY_LATENT, V2),
        TENSORS,
        harmless=UNUSED | V2_UNUSED,
        defaults={"aux_loss_alpha": 0.001},
    ),
    Family("deepseek_v3", (V3, experts.FIRST_DENSE), TENSORS, harmless=UNUSED | V3_UNUSED, ignored=FURTHER_LAYER),
    Family("glm4_moe_lite", (V3, experts.AFTER_FIRST), TENSORS, harmless=UNUSED, ignored=FURTHER_LAYER),
    Family(
        "youtu",
        (keys.SIZES, keys.LENGTH, keys.RMSNORM, keys.dense(), ROTARY_LATENT, INTERLEAVED_KEY),
        DENSE,
        harmless=UNUSED | harmless("initializer_range"),
    ),
    Family("minicpm3", (START, ROTARY_LATENT, MINICPM), DENSE, harmless=UNUSED),
    Family(
        "mistral4",
        (START, MISTRAL4),
        (*DENSE, STACKED),
        harmless=UNUSED | harmless("rope_parameters.max_position_embeddings"),
    ),
]
