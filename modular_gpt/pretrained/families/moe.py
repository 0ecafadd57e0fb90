"""Llama-like families with a mixture of experts.

Mixtral: https://arxiv.org/abs/2401.04088, OLMoE: https://arxiv.org/abs/2409.02060,
GPT-OSS: https://arxiv.org/abs/2508.10925
"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    ALL_FULL,
    FULL,
    RMSNORM,
    SLIDING,
    WINDOW,
    all_of,
    biases,
    dense,
    every,
    key,
    layer_types,
    qk_norm,
    types_of_windows,
    windows,
)
from modular_gpt.pretrained.families.expert_keys import (
    ALL_SPARSE,
    DEEPSEEK_V3,
    NORM_TOPK,
    SPARSE_STEP,
    after_first,
    experts,
    first_dense,
    mlp_layer_types,
    moe,
    router_loss,
    shared,
    shared_width,
    sigmoid_router,
    sparse,
)
from modular_gpt.pretrained.families.latent import FURTHER_LAYER, GATE_AND_UP
from modular_gpt.pretrained.families.llama import CLIP, PARTLY_ROTATED, POST_RESIDUAL, SANDWICH, START, last_layers
from modular_gpt.pretrained.families.rope_config import Layers, rope
from modular_gpt.pretrained.families.tensor_names import (
    ATTENTION,
    ENDS,
    IN_OUT,
    LAYER,
    LLAMA,
    OURS,
    POST_NORMS,
    PRE_NORMS,
    QK_NORM,
    ROUTER,
    SINKS,
    STACKED_ROWS,
    in_layer,
    shared_expert,
)
from modular_gpt.pretrained.families.tensor_names import experts as expert_tensors
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, layer_count, per_layer
from modular_gpt.pretrained.tensor_map import INTERLEAVED, TensorMapping, affine, transposed

BASE = (START, RMSNORM, rope())
WITH_DENSE = (START, RMSNORM, dense(), rope())
WHOLE = (ENDS, PRE_NORMS, ATTENTION)
W123 = expert_tensors(f"{LAYER}.block_sparse_moe", ("w1", "w3", "w2"), select_bias="e_score_correction_bias", shared="")
EXPERTS = expert_tensors()

STACKED = f"{LAYER}.mlp.experts"
GPT_OSS_EXPERTS = [
    *affine(f"{LAYER}.mlp.router", f"{OURS}.ffn.router"),
    TensorMapping(f"{STACKED}.gate_up_proj", (f"{OURS}.ffn.gate", f"{OURS}.ffn.up"), transposed(INTERLEAVED)),
    TensorMapping(f"{STACKED}.gate_up_proj_bias", (f"{OURS}.ffn.gate_bias", f"{OURS}.ffn.up_bias"), INTERLEAVED),
    TensorMapping(f"{STACKED}.down_proj", (f"{OURS}.ffn.down",), IN_OUT),
    TensorMapping(f"{STACKED}.down_proj_bias", (f"{OURS}.ffn.down_bias",)),
]
GPT_OSS = (
    experts("num_local_experts", "intermediate_size", act=""),
    router_loss(),
    moe(activation="clamped_swish", bias=True, router_bias=True),
    key("swiglu_limit", "ffn@moe.clamp_limit", float),
    key("swiglu_alpha", "ffn@moe.clamp_alpha", float),
    always({"attention@mha.sinks": True}),
    ALL_SPARSE,
)
MIXTRAL = (experts("num_local_experts", "intermediate_size"), router_loss(), ALL_SPARSE)


def _qwen2_windows(settings: HFConfig) -> list[str]:
    """Every other of the layers before ``max_window_layers`` has a window."""
    last = settings["max_window_layers"] if settings["use_sliding_window"] else 0
    return [SLIDING if (i + 1) % 2 and i < last else FULL for i in range(layer_count(settings))]


QWEN_MOE = (experts("num_experts"), router_loss(), SPARSE_STEP, NORM_TOPK)
ONE_WINDOW = windows(all_of(SLIDING), switch="use_sliding_window")
QWEN3_WINDOW = Keys(
    lambda s: {"attention@mha.window": s["sliding_window"] if s["use_sliding_window"] else None},
    lambda view: {name: value for name, value in ONE_WINDOW.to_hf(view).items() if name != "layer_types"},
)
SHARED_GATE = [
    TensorMapping(f"{LAYER}.mlp.shared_expert_gate.weight", (f"{OURS}.ffn.shared_gate.weight",)),
]
OLMOE = (experts("num_experts", "intermediate_size"), router_loss(), NORM_TOPK, ALL_SPARSE)
BY_TYPE = (rope(per_type=ALL_FULL), windows())


def _rotary_dim(settings: HFConfig) -> PlainDict:
    """The older key of MiniMax-M2 for the number of rotated dimensions."""
    given, parameters = settings.get("rotary_dim"), settings.get("rope_parameters") or {}
    if given is None or parameters.get("partial_rotary_factor") is not None:
        return {}
    return {"pos@rope.rotary_dim": given}


HY_V3 = expert_tensors(router="router.gate", select_bias="expert_bias", shared="shared_mlp")
KOLIBRI_NORMS = in_layer(LAYER, attention_post_norm="post_attn_norm", ffn_post_norm="post_ffn_norm")
KOLIBRI_BIAS = [TensorMapping(f"{LAYER}.moe.router.expert_bias", (f"{OURS}.ffn.select_bias",))]
KOLIBRI_EXPERTS = [mapping for mapping in EXPERTS if "correction_bias" not in mapping.hf_name]
KOLIBRI = (
    experts("num_experts"),
    sigmoid_router(groups=False),
    moe(rank_by="logit"),
    shared_width("shared_expert_intermediate_size"),
    ALL_SPARSE,
    SANDWICH,
)


def _with_window(settings: HFConfig) -> list[bool]:
    return [name == SLIDING for name in layer_types(settings, every(5))]


def _mimo_types(settings: HFConfig) -> list[str]:
    """The first layer and every sixth one attend to all tokens."""
    return [FULL if i == 0 or (i + 1) % 6 == 0 else SLIDING for i in range(layer_count(settings))]


def _read_mimo(settings: HFConfig) -> PlainDict:
    """MiMo's layers with a window have sinks, and twice the key/value heads."""
    types, n_kv_heads = layer_types(settings, _mimo_types), settings["num_key_value_heads"]
    scale = settings["attention_value_scale"]
    return {
        "attention@mha.sinks": per_layer(name == SLIDING for name in types),
        "attention@mha.n_kv_heads": per_layer(n_kv_heads * (2 if name == SLIDING else 1) for name in types),
        "attention@mha.value_scale": 1.0 if scale is None else float(scale),
    }


def _write_mimo(view: ModelView) -> PlainDict:
    n_kv_heads, name = view["attention@mha.n_kv_heads"], types_of_windows(view)[0]
    return {
        "num_key_value_heads": n_kv_heads // 2 if name == SLIDING else n_kv_heads,
        "attention_value_scale": view["attention@mha.value_scale"],
    }


MIMO = (
    rope(per_type=_mimo_types, partial=True),
    windows(_mimo_types),
    biases(),
    key("v_head_dim", "attention@mha.v_head_dim"),
    Keys(_read_mimo, _write_mimo),
    experts("n_routed_experts"),
    sigmoid_router("routed_scaling_factor"),
    mlp_layer_types(after_first),
)
MIMO_SINKS = [TensorMapping(f"{LAYER}.self_attn.attention_sink_bias", (f"{OURS}.attention.sinks",))]

CHUNKED = "chunked_attention"


def _llama4_rotates(settings: HFConfig) -> list[bool]:
    """Llama 4's layers with rotary positions: all but every fourth one, unless they are listed."""
    given, interval = settings["no_rope_layers"], settings["no_rope_layer_interval"]
    return [bool(one) for one in given or ((i + 1) % interval for i in range(layer_count(settings)))]


def _read_llama4(settings: HFConfig) -> PlainDict:
    """Layers in chunks, a norm of rotated queries and keys, and a temperature in layers without positions."""
    rotates = _llama4_rotates(settings)
    types = layer_types(settings, lambda _: [CHUNKED if one else FULL for one in rotates], (FULL, CHUNKED))
    n_heads, n_kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
    norm = {"name": "rmsnorm", "eps": float(settings["rms_norm_eps"]), "affine": False}
    growth = {"beta": float(settings["attn_scale"]), "length": float(settings["floor_scale"]), "shift": 1}
    tuned = settings["attn_temperature_tuning"]
    whole = "mha" if n_kv_heads in (None, n_heads) else "gqa"
    return {
        "attention.name": per_layer("sparse" if name == CHUNKED else whole for name in types),
        "attention@sparse.pattern": "chunked",
        "attention@sparse.chunk": settings["attention_chunk_size"],
        "attention@mha.qk_norm": per_layer(norm if one and settings["use_qk_norm"] else None for one in rotates),
        "attention@mha.qk_norm_after_rope": True,
        "attention@mha.query_temperature": per_layer({} if one or not tuned else growth for one in rotates),
    }


def _write_llama4(view: ModelView) -> PlainDict:
    growth = next((found for found in view.each("attention@mha.query_temperature") if found), None)
    keys = {
        "layer_types": [CHUNKED if layer.attention.name == "sparse" else FULL for layer in view.layers],
        "use_qk_norm": view["attention@mha.qk_norm"] is not None,
        "attn_temperature_tuning": growth is not None,
    }
    chunk = view["attention@sparse.chunk"]
    keys |= {"attention_chunk_size": chunk} if chunk else {}
    return keys | ({"attn_scale": growth["beta"], "floor_scale": round(growth["length"])} if growth else {})


def _llama4_sparse(settings: HFConfig) -> list[bool]:
    step, given = settings["interleave_moe_layer_step"], settings["moe_layers"]
    layers = range(layer_count(settings))
    return [(i + 1) % step == 0 if given is None else i in given for i in layers]


LLAMA4 = (
    rope(
        layout="interleaved",
        where=Layers(_llama4_rotates, lambda rotates: {"no_rope_layers": [int(one) for one in rotates]}),
    ),
    Keys(_read_llama4, _write_llama4),
    experts("num_local_experts", "intermediate_size"),
    router_loss(),
    moe(score="sigmoid", norm_topk=False, weight_on_input=True, shared_experts=1),
    sparse(_llama4_sparse, lambda has: {"moe_layers": [i for i, one in enumerate(has) if one]}),
)
FEED = f"{LAYER}.feed_forward"
LLAMA4_TENSORS = [
    *(
        mapping._replace(unless=ROUTER)
        for mapping in in_layer(FEED, ffn__gate="gate_proj", ffn__up="up_proj", ffn__down="down_proj")
    ),
    TensorMapping(f"{FEED}.router.weight", (ROUTER,)),
    TensorMapping(f"{FEED}.experts.gate_up_proj", GATE_AND_UP, transposed(STACKED_ROWS), where=ROUTER),
    TensorMapping(f"{FEED}.experts.down_proj", (f"{OURS}.ffn.down",), IN_OUT, where=ROUTER),
    *shared_expert(f"{FEED}.shared_expert"),
]

FAMILIES = [
    Family("mixtral", (BASE, biases(False), WINDOW, MIXTRAL), (*WHOLE, W123)),
    Family(
        "gpt_oss",
        (BASE, biases(), windows(every(2)), GPT_OSS),
        (*WHOLE, SINKS, GPT_OSS_EXPERTS),
        harmless={"hidden_act": ("silu",), "experts_per_token": ANY, "initial_context_length": ANY},
        quantised=("mxfp4",),
    ),
    Family(
        "qwen2_moe",
        (WITH_DENSE, biases("qkv_bias", False), windows(_qwen2_windows, switch="use_sliding_window"), QWEN_MOE,
         shared_width("shared_expert_intermediate_size", gate=True)),
        (*LLAMA, expert_tensors(shared="shared_expert"), SHARED_GATE),
    ),
    Family(
        "qwen3_moe", (WITH_DENSE, biases(), qk_norm(), QWEN3_WINDOW, QWEN_MOE), (*LLAMA, QK_NORM, EXPERTS)
    ),
    Family("olmoe", (BASE, biases(), qk_norm("full"), CLIP, OLMOE), (*WHOLE, QK_NORM, EXPERTS)),
    Family(
        "flex_olmo",
        (BASE, biases(), qk_norm("full"), OLMOE, POST_RESIDUAL),
        (ENDS, POST_NORMS, ATTENTION, QK_NORM, EXPERTS),
    ),
    Family(
        "mellum",
        (START, RMSNORM, dense(), BY_TYPE, biases(), qk_norm(), experts("num_experts"), router_loss(), NORM_TOPK,
         mlp_layer_types(all_of("sparse"))),
        (*LLAMA, QK_NORM, EXPERTS),
    ),
    Family(
        "minimax_m2",
        (START, RMSNORM, rope(partial=True), Keys(_rotary_dim), biases(False), qk_norm("full"), MIXTRAL,
         sigmoid_router(norm_topk="", groups=False)),
        (*WHOLE, QK_NORM, W123),
    ),
    Family(
        "glm4_moe",
        (PARTLY_ROTATED, biases("attention_bias", False), qk_norm(switch="use_qk_norm"), DEEPSEEK_V3, first_dense()),
        (*LLAMA, QK_NORM, EXPERTS),
        ignored=FURTHER_LAYER,
    ),
    Family(
        "dots1",
        (WITH_DENSE, biases(), qk_norm(), windows(last_layers), DEEPSEEK_V3, first_dense()),
        (*LLAMA, QK_NORM, EXPERTS),
    ),
    Family("solar_open", (BASE, biases("attention_bias", False), DEEPSEEK_V3, ALL_SPARSE), (*WHOLE, EXPERTS)),
    Family(
        "hy_v3",
        (WITH_DENSE, biases(), qk_norm(), experts("num_experts"), sigmoid_router("router_scaling_factor", "", False),
         shared("num_shared_experts"), mlp_layer_types(after_first)),
        (*LLAMA, QK_NORM, HY_V3),
        harmless={"enable_moe_fp32_combine": ANY, "mlp_bias": (False,)},
    ),
    Family(
        "kolibri1",
        (START, RMSNORM, rope(where=Layers(_with_window)), windows(every(5)), biases(False), qk_norm(), KOLIBRI),
        (*WHOLE, KOLIBRI_NORMS, QK_NORM, KOLIBRI_EXPERTS, KOLIBRI_BIAS),
    ),
    Family(
        "llama4_text",
        (START, RMSNORM, dense(hidden="intermediate_size_mlp"), biases(), LLAMA4),
        (*WHOLE, LLAMA4_TENSORS),
    ),
    Family("mimo_v2_flash", (START, RMSNORM, dense(), MIMO), (*LLAMA, MIMO_SINKS, EXPERTS)),
]  # fmt: skip
