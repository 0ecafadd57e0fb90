"""Llama-like families with a mixture of experts.

Mixtral: https://arxiv.org/abs/2401.04088, OLMoE: https://arxiv.org/abs/2409.02060,
GPT-OSS: https://arxiv.org/abs/2508.10925
"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import HFConfig, Keys, by_number, harmless, key, layers, modules, tensors
from modular_gpt.mapping import tensor_map as stored
from modular_gpt.mapping.setting_map import enabled_by
from modular_gpt.mapping.tensor_map import unless, where
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families import expert_keys as experts
from modular_gpt.pretrained.families import tensor_names as names
from modular_gpt.pretrained.families.decoder_keys import RMSNORM, START, biases, by_type, dense, every, qk_norm, windows
from modular_gpt.pretrained.families.expert_keys import (
    AFTER_FIRST,
    DEEPSEEK_V3,
    FIRST_DENSE,
    MIXTRAL,
    QWEN,
    SIGMOID,
    moe,
)
from modular_gpt.pretrained.families.latent import FURTHER_LAYER
from modular_gpt.pretrained.families.rope_config import rope, rope_by_type
from modular_gpt.pretrained.families.tensor_names import LAYER, LLAMA, MLP, QK_NORM, ROUTER, WHOLE
from modular_gpt.pretrained.family import Family

BASE = (START, RMSNORM, rope())
WITH_DENSE = (BASE, dense())
W123 = names.experts(f"{LAYER}.block_sparse_moe", "w1,w3,w2", "", select_bias="e_score_correction_bias")
EXPERTS = names.experts()
GPT_OSS = (
    experts.experts("num_local_experts", "intermediate_size", act=""),
    experts.router_loss(),
    moe(activation="clamped_swish", bias=True, router_bias=True),
    "swiglu_{limit,alpha} = ffn@moe.clamp_{limit,alpha}",
    {"attention@mha.sinks": True, "ffn.name": "moe"},
)
GPT_OSS_EXPERTS = [
    *modules("router = ffn.router", MLP),
    *tensors("gate_up_proj = ffn.gate + ffn.up", f"{MLP}.experts", stored.transposed(stored.INTERLEAVED)),
    *tensors("gate_up_proj_bias = ffn.gate_bias + ffn.up_bias", f"{MLP}.experts", stored.INTERLEAVED),
    *tensors("down_proj = ffn.down", f"{MLP}.experts", stored.IN_OUT),
    *tensors("down_proj_bias = ffn.down_bias", f"{MLP}.experts"),
]


def _every_other(i: int, settings: HFConfig) -> bool:
    """All but every other of the layers before ``max_window_layers`` attend to all tokens."""
    return i % 2 == 1 or i >= (settings["max_window_layers"] if settings["use_sliding_window"] else 0)


QWEN2_WINDOWS = keys.switched_windows(windows(_every_other))
QWEN2 = (biases("qkv_bias", False), QWEN2_WINDOWS, QWEN, experts.shared_width(gate=True))
QWEN3_WINDOW = enabled_by("use_sliding_window", keys.WINDOW_PATH, keys.WINDOW)
MELLUM = (
    (START, RMSNORM, dense(), biases(), qk_norm(), rope_by_type(keys.ALL_LAYERS), windows()),
    (experts.experts("num_experts"), experts.router_loss(), experts.NORM_TOPK),
    experts.sparse(experts.mlp_types(keys.ALL_LAYERS)),
)


def _rotary_dim(settings: HFConfig) -> PlainDict:
    """The older key of MiniMax-M2 for the number of rotated dimensions."""
    given, parameters = settings.get("rotary_dim"), settings.get("rope_parameters") or {}
    if given is None or parameters.get("partial_rotary_factor") is not None:
        return {}
    return {"pos@rope.rotary_dim": given}


QKV_BIAS = biases("attention_bias", False)
USED_NORM = enabled_by("use_qk_norm", keys.QK_NORM, qk_norm())
GLM4 = (START, RMSNORM, dense(), rope(partial=True), QKV_BIAS, USED_NORM)
DOTS = windows(lambda i, settings: i < settings["max_window_layers"])
HY_V3 = (
    (biases(), qk_norm(), experts.experts("num_experts"), SIGMOID, AFTER_FIRST, experts.shared("num_shared_experts")),
    "router_scaling_factor = ffn@moe.routed_scale",
)
KOLIBRI = (
    (windows(every(5)), by_type(every(5), (), {"pos.name": "none"}), biases(False), qk_norm(), experts.ALL_SPARSE),
    (experts.experts("num_experts"), SIGMOID, experts.NORM_TOPK, moe(rank_by="logit"), experts.shared_width()),
    {"block.topology": "sandwich"},
)
KOLIBRI_TENSORS = [
    *modules("post_{attn,ffn}_norm = {attention,ffn}_post_norm", LAYER),
    *names.experts(select_bias=""),
    *tensors("moe.router.expert_bias = ffn.select_bias", LAYER),
]
MIMO_FULL = every(6, first=True)
MIMO = (
    (rope_by_type(MIMO_FULL, partial=True), windows(MIMO_FULL), biases(), "v_head_dim = attention@mha.v_head_dim"),
    key("attention_value_scale", "attention@mha.value_scale", null=1.0),
    # the layers with a window have sinks, and twice the key/value heads
    by_type(
        MIMO_FULL,
        ({"attention@mha.sinks": True}, key("num_key_value_heads", keys.HEADS, lambda n: 2 * n, lambda n: n // 2)),
        f"num_key_value_heads = {keys.HEADS}",
        keys.WINDOW_PATH,
    ),
    (experts.experts("n_routed_experts"), SIGMOID, AFTER_FIRST, experts.NORM_TOPK, experts.SCALE, experts.GROUPS),
)
MIMO_SINKS = tensors("attention_sink_bias = attention.sinks", names.ATTN)
TEMPERATURE = "attention@mha.query_temperature"


def _llama4_sparse(i: int, settings: HFConfig) -> bool:
    step, given = settings["interleave_moe_layer_step"], settings["moe_layers"]
    return (i + 1) % step == 0 if given is None else i in given


CHUNK = "attention@sparse.chunk"
LLAMA4 = (
    (rope(layout="interleaved"), keys.NO_ROPE_LAYERS, {f"{keys.QK_NORM}_after_rope": True}),
    by_type(
        lambda i, settings: not keys.ROTATED.from_hf(settings)[i],
        ({"attention.name": "sparse", "attention@sparse.pattern": "chunked"}, f"attention_chunk_size = {CHUNK}"),
        mark=CHUNK,
        other="chunked_attention",
    ),
    layers(
        keys.ROTATED,
        enabled_by("use_qk_norm", keys.QK_NORM, qk_norm(after_rope=True, affine=False)),
        enabled_by("attn_temperature_tuning", TEMPERATURE, keys.growth("attn_scale", "floor_scale", shift=1)),
        mark="pos@rope.theta",
    ),
    (experts.experts("num_local_experts", "intermediate_size"), experts.router_loss()),
    moe(score="sigmoid", norm_topk=False, weight_on_input=True, shared_experts=1),
    experts.sparse(by_number(_llama4_sparse, lambda has: {"moe_layers": [i for i, one in enumerate(has) if one]})),
)
FEED = f"{LAYER}.feed_forward"
LLAMA4_TENSORS = [
    *unless(ROUTER, modules("{gate,up,down}_proj = ffn.{gate,up,down}", FEED)),
    *tensors(f"router.weight = {ROUTER}", FEED),
    *where(ROUTER, tensors("experts.gate_up_proj = ffn.gate + ffn.up", FEED, stored.transposed(stored.STACKED_ROWS))),
    *where(ROUTER, tensors("experts.down_proj = ffn.down", FEED, stored.IN_OUT)),
    *names.shared_expert(f"{FEED}.shared_expert"),
]

FAMILIES = [
    Family("mixtral", (BASE, biases(False), keys.WINDOW, MIXTRAL), (*WHOLE, W123)),
    Family(
        "gpt_oss",
        (BASE, biases(), windows(every(2)), GPT_OSS),
        (*WHOLE, names.SINKS, GPT_OSS_EXPERTS),
        harmless=harmless("experts_per_token initial_context_length", hidden_act="silu"),
        quantised=("mxfp4",),
    ),
    Family("qwen2_moe", (WITH_DENSE, QWEN2), (*LLAMA, names.GATED_EXPERTS)),
    Family("qwen3_moe", (WITH_DENSE, biases(), qk_norm(), QWEN3_WINDOW, QWEN), (*LLAMA, QK_NORM, EXPERTS)),
    Family("olmoe", (BASE, biases(), qk_norm("full"), keys.CLIP, experts.OLMO), (*WHOLE, QK_NORM, EXPERTS)),
    Family(
        "flex_olmo",
        (BASE, biases(), qk_norm("full"), experts.OLMO, {"block.topology": "post_residual"}),
        (names.ENDS, names.POST_NORMS, names.ATTENTION, QK_NORM, EXPERTS),
    ),
    Family("mellum", MELLUM, (*LLAMA, QK_NORM, EXPERTS)),
    Family(
        "minimax_m2",
        (START, RMSNORM, rope(partial=True), Keys(_rotary_dim), biases(False), qk_norm("full"), MIXTRAL, SIGMOID),
        (*WHOLE, QK_NORM, W123),
    ),
    Family("glm4_moe", (GLM4, DEEPSEEK_V3, FIRST_DENSE), (*LLAMA, QK_NORM, EXPERTS), ignored=FURTHER_LAYER),
    Family("dots1", (WITH_DENSE, biases(), qk_norm(), DOTS, DEEPSEEK_V3, FIRST_DENSE), (*LLAMA, QK_NORM, EXPERTS)),
    Family("solar_open", (BASE, QKV_BIAS, DEEPSEEK_V3, experts.ALL_SPARSE), (*WHOLE, EXPERTS)),
    Family(
        "hy_v3",
        (WITH_DENSE, HY_V3),
        (*LLAMA, QK_NORM, names.experts(shared="shared_mlp", router="router.gate", select_bias="expert_bias")),
        harmless=harmless("enable_moe_fp32_combine", mlp_bias=False),
    ),
    Family("kolibri1", (BASE, KOLIBRI), (*WHOLE, QK_NORM, KOLIBRI_TENSORS)),
    Family(
        "llama4_text",
        (START, RMSNORM, dense(hidden="intermediate_size_mlp"), biases(), LLAMA4),
        (*WHOLE, LLAMA4_TENSORS),
    ),
    Family("mimo_v2_flash", (START, RMSNORM, dense(), MIMO), (*LLAMA, MIMO_SINKS, EXPERTS)),
]
