"""Families with multi-head latent attention: https://arxiv.org/abs/2405.04434 (DeepSeek-V2)"""

import math

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    ATTENTION_DROPOUT,
    INIT,
    LENGTH,
    RMSNORM,
    SIZES,
    dense,
    only,
    rounded,
)
from modular_gpt.pretrained.families.expert_keys import (
    DEEPSEEK_V3,
    NORM_TOPK,
    after_first,
    experts,
    first_dense,
    mlp_layer_types,
    moe,
    router_loss,
    shared,
)
from modular_gpt.pretrained.families.rope_config import (
    rope,
    rope_parameters,
    temperature,
    temperature_to_hf,
    yarn_magnitude,
)
from modular_gpt.pretrained.families.tensor_names import (
    ENDS,
    GATED,
    LAYER,
    OURS,
    PRE_NORMS,
    ROUTER,
    STACKED_ROWS,
    latent_attention,
)
from modular_gpt.pretrained.families.tensor_names import experts as expert_tensors
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count
from modular_gpt.pretrained.tensor_map import EXPERT, TensorMapping

START = (*SIZES, LENGTH, INIT, RMSNORM, dense())


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
    width = settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"]
    return {
        "attention.name": "mla",
        "attention@mla.scale": width**-0.5 * magnitude**2,
        "attention@mla.qkv_bias": biased,
        "attention@mla.out_bias": biased,
    }


def _write_attention(view: ModelView) -> PlainDict:
    return {"attention_bias": view["attention@mla.qkv_bias"], "num_key_value_heads": view["n_heads"]}


LATENT = (
    Keys(_read_attention, _write_attention),
    tuple(
        key(name, f"attention@mla.{name}")
        for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    ),
    ATTENTION_DROPOUT,
)
INTERLEAVED_KEY = key(
    "rope_interleave",
    "pos@rope.layout",
    lambda interleaved: "interleaved" if interleaved else "half",
    lambda layout: layout == "interleaved",
)


def _mscale(view: ModelView) -> PlainDict:
    """DeepSeek's two weights on the logarithm, from the scale of scores and the factor on queries and keys."""
    scaling = view["pos@rope.scaling"]
    if not scaling or scaling["kind"] != "yarn" or scaling["factor"] <= 1 or not view["attention@mla.scale"]:
        return {}
    width = view["attention@mla.qk_nope_head_dim"] + view["attention@mla.qk_rope_head_dim"]
    logarithm = 0.1 * yarn_log(scaling["factor"])
    magnitude = (view["attention@mla.scale"] * width**0.5) ** 0.5
    return {"mscale_all_dim": (magnitude - 1) / logarithm} if magnitude != 1 else {}


def yarn_log(factor: float) -> float:
    """The natural logarithm of yarn's factor, from ``yarn_magnitude``."""
    return (yarn_magnitude(factor, 1.0) - 1.0) / 0.1


ROPE = rope(width="qk_rope_head_dim", extra=_mscale)
TENSORS = (ENDS, PRE_NORMS, GATED, latent_attention(), expert_tensors())
# keys of their files that transformers does not read
UNUSED = {**dict.fromkeys(("qk_head_dim", "head_dim"), ANY), "moe_layer_freq": (1,)}


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
    experts("n_routed_experts"),
    moe(norm_topk=False),
    router_loss("aux_loss_alpha"),
    key("routed_scaling_factor", "ffn@moe.routed_scale", float),
    shared("n_shared_experts"),
    Keys(_read_groups, _write_groups),
    first_dense(),
)


def _read_minicpm(settings: HFConfig) -> PlainDict:
    depth, base = settings["scale_depth"], settings["dim_model_base"]
    return {
        "residual_multiplier": depth / math.sqrt(layer_count(settings)),
        "logit_scale": base / settings["hidden_size"],
    }


def _write_minicpm(view: ModelView) -> PlainDict:
    return {
        "scale_depth": view["residual_multiplier"] * math.sqrt(view["n_layers"]),
        "dim_model_base": rounded(view["logit_scale"] * view["d_model"]),
    }


MINICPM = (
    key("scale_emb", "embed_scale", float, rounded),
    Keys(_read_minicpm, _write_minicpm),
    only(mlp_bias=False),
    always({"pos@rope.layout": "half"}),
)


def _mistral4_rope(view: ModelView) -> PlainDict:
    return {**_mscale(view), **temperature_to_hf(view)}


def _head_width(settings: HFConfig) -> int:
    width: int = settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"]
    return width


MISTRAL4 = (
    rope(width="qk_rope_head_dim", fraction_of=_head_width, extra=_mistral4_rope),
    LATENT,
    INTERLEAVED_KEY,
    temperature("mla"),
    experts("n_routed_experts"),
    shared("n_shared_experts"),
    NORM_TOPK,
    key("routed_scaling_factor", "ffn@moe.routed_scale", float),
    moe(group_score="top2"),
    key("n_group", "ffn@moe.groups"),
    key("topk_group", "ffn@moe.top_groups"),
    first_dense(),
)
GATE_AND_UP = (f"{OURS}.ffn.gate", f"{OURS}.ffn.up")
# one tensor for the gates and ups of all experts
STACKED = [
    TensorMapping(
        f"{LAYER}.mlp.experts.gate_up_proj", (f"{OURS}.ffn.gate", f"{OURS}.ffn.up"), STACKED_ROWS, where=ROUTER
    ),
    TensorMapping(f"{LAYER}.mlp.experts.down_proj", (f"{OURS}.ffn.down",), where=ROUTER),
    *(mapping for mapping in expert_tensors() if EXPERT not in mapping.hf_name),
]
FURTHER_LAYER = (r"model\.layers\.{n_layers}\..*",)  # after the last one, to predict a further token while training
FAMILIES = [
    Family(
        "deepseek_v2",
        (START, ROPE, LATENT, V2, only(norm_topk_prob=False, mlp_bias=False),
         Keys(lambda settings: {"pos@rope.layout": "interleaved"})),
        TENSORS,
        harmless={**UNUSED, "scoring_func": ("softmax",), "rope_interleave": (True,)},
        defaults={"aux_loss_alpha": 0.001},
    ),
    Family(
        "deepseek_v3",
        (START, ROPE, LATENT, DEEPSEEK_V3, first_dense(), INTERLEAVED_KEY),
        TENSORS,
        harmless={**UNUSED, "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
        ignored=FURTHER_LAYER,
    ),
    Family(
        "youtu",
        (SIZES, LENGTH, RMSNORM, dense(), ROPE, LATENT, INTERLEAVED_KEY),
        (ENDS, PRE_NORMS, GATED, latent_attention()),
        harmless={**UNUSED, "initializer_range": ANY},
    ),
    Family("minicpm3", (START, ROPE, LATENT, MINICPM), (ENDS, PRE_NORMS, GATED, latent_attention()), harmless=UNUSED),
    Family(
        "glm4_moe_lite",
        (START, ROPE, LATENT, DEEPSEEK_V3, mlp_layer_types(after_first), INTERLEAVED_KEY),
        TENSORS,
        harmless=UNUSED,
        ignored=FURTHER_LAYER,
    ),
    Family(
        "mistral4",
        (START, MISTRAL4),
        (ENDS, PRE_NORMS, GATED, latent_attention(), STACKED),
        harmless={**UNUSED, "rope_parameters.max_position_embeddings": ANY},
    ),
]  # fmt: skip
