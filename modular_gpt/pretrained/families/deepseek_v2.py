"""DeepSeek-V2: https://arxiv.org/abs/2405.04434"""

from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.llama_like import DEFAULTS, ENDS, GATED, LAYER, NORMS, decoder
from modular_gpt.pretrained.families.rope_config import rope_settings, yarn_magnitude
from modular_gpt.pretrained.family import Family, must_be
from modular_gpt.pretrained.tensor_map import FUSED_PER_HEAD, TensorMapping, affine

_ATTENTION = f"{LAYER}.self_attn"
_QUERY_LATENT = "blocks.{layer}.attention.query_down.weight"
_EXPERT = f"{LAYER}.mlp.experts.{{expert}}"
RULES = (
    *ENDS,
    *NORMS,
    *GATED,
    TensorMapping(f"{_ATTENTION}.q_proj.weight", ("blocks.{layer}.attention.query.weight",), unless=_QUERY_LATENT),
    TensorMapping(f"{_ATTENTION}.q_b_proj.weight", ("blocks.{layer}.attention.query.weight",), where=_QUERY_LATENT),
    *affine(f"{_ATTENTION}.q_a_proj", "blocks.{layer}.attention.query_down"),
    TensorMapping(f"{_ATTENTION}.q_a_layernorm.weight", ("blocks.{layer}.attention.query_norm.weight",)),
    *affine(f"{_ATTENTION}.kv_a_proj_with_mqa", "blocks.{layer}.attention.latent"),
    TensorMapping(f"{_ATTENTION}.kv_a_layernorm.weight", ("blocks.{layer}.attention.latent_norm.weight",)),
    TensorMapping(
        f"{_ATTENTION}.kv_b_proj.weight",
        ("blocks.{layer}.attention.key.weight", "blocks.{layer}.attention.value.weight"),
        FUSED_PER_HEAD,
    ),
    *affine(f"{_ATTENTION}.o_proj", "blocks.{layer}.attention.out"),
    TensorMapping(f"{LAYER}.mlp.gate.weight", ("blocks.{layer}.ffn.router.weight",)),
    TensorMapping(f"{LAYER}.mlp.gate.e_score_correction_bias", ("blocks.{layer}.ffn.select_bias",)),
    TensorMapping(f"{_EXPERT}.gate_proj.weight", ("blocks.{layer}.ffn.gate",)),
    TensorMapping(f"{_EXPERT}.up_proj.weight", ("blocks.{layer}.ffn.up",)),
    TensorMapping(f"{_EXPERT}.down_proj.weight", ("blocks.{layer}.ffn.down",)),
    *affine(f"{LAYER}.mlp.shared_experts.gate_proj", "blocks.{layer}.ffn.shared.gate"),
    *affine(f"{LAYER}.mlp.shared_experts.up_proj", "blocks.{layer}.ffn.shared.up"),
    *affine(f"{LAYER}.mlp.shared_experts.down_proj", "blocks.{layer}.ffn.shared.down"),
)


# keys of their files that transformers does not read
UNUSED: PlainDict = {
    **dict.fromkeys(("qk_head_dim", "ep_size", "seq_aux", "num_nextn_predict_layers", "aux_loss_alpha"), ANY),
    "moe_layer_freq": (1,),
}


def latent_decoder(settings: HFConfig) -> PlainDict:
    """Convert the settings of a decoder with latent attention to ours, and those of its experts that versions share."""
    if settings["attention_bias"] and settings["q_lora_rank"] is None:
        raise CheckpointError("the checkpoint has attention_bias=true without q_lora_rank, which is not supported")
    if settings["num_key_value_heads"] not in (None, settings["num_attention_heads"]):
        raise CheckpointError(
            "the checkpoint has fewer key/value heads than query heads, which latent attention has not"
        )
    nope, turning = settings["qk_nope_head_dim"], settings["qk_rope_head_dim"]
    ours = decoder(settings.with_values(head_dim=turning))
    given = rope_settings(settings)
    magnitude = yarn_magnitude(given.get("factor") or 1.0, given.get("mscale_all_dim") or 0.0)
    ours["attention"] = {
        "name": "mla",
        "kv_lora_rank": settings["kv_lora_rank"],
        "q_lora_rank": settings["q_lora_rank"],
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": turning,
        "v_head_dim": settings["v_head_dim"],
        "qkv_bias": settings["attention_bias"],
        "out_bias": settings["attention_bias"],
        "scale": (nope + turning) ** -0.5 * magnitude**2,
        "dropout": float(settings["attention_dropout"]),
    }
    dense = ours["ffn"]
    ours["ffn"] = {
        "name": "moe",
        "n_experts": settings["n_routed_experts"],
        "top_k": settings["num_experts_per_tok"],
        "hidden": settings["moe_intermediate_size"],
        "activation": dense["activation"],
        "shared_experts": settings["n_shared_experts"],
        "routed_scale": float(settings["routed_scaling_factor"]),
        "z_weight": 0.0,
    }
    first = min(settings["first_k_dense_replace"], settings["num_hidden_layers"])
    ours["layers"] = {"name": "dense_first", "variants": {"dense": {"ffn": dense}}, "prefix": ["dense"] * first}
    return ours


def from_hf(settings: HFConfig) -> PlainDict:
    must_be(settings, norm_topk_prob=False, mlp_bias=False)
    ours = latent_decoder(settings)
    ours["pos"]["layout"] = "interleaved"
    ours["ffn"] |= {"norm_topk": False, "balance_weight": settings["aux_loss_alpha"]}
    if settings["topk_method"] == "group_limited_greedy":
        ours["ffn"] |= {"groups": settings["n_group"], "top_groups": settings["topk_group"]}
    else:
        must_be(settings, topk_method="greedy")
        settings.ignore("n_group", "topk_group")
    return ours


FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    rules=RULES,
    from_hf=from_hf,
    synonyms={"num_experts": "n_routed_experts"},
    harmless={**UNUSED, "scoring_func": ("softmax",), "rope_interleave": (True,)},
    defaults={
        **DEFAULTS,
        "vocab_size": 102400,
        "num_key_value_heads": 32,
        "mlp_bias": False,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_group": None,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 1.0,
        "topk_group": None,
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "v_head_dim": 128,
        "moe_intermediate_size": 1407,
        "aux_loss_alpha": 0.001,
    },
)
