"""Families with recurrent mixers in most layers and softmax attention in the others.

Qwen3-Next: https://huggingface.co/Qwen/Qwen3-Next-80B-A3B-Instruct, Kimi Linear: https://arxiv.org/abs/2510.26692,
OLMo Hybrid: https://huggingface.co/allenai/Olmo-Hybrid-7B
"""

import re
from collections.abc import Mapping
from itertools import accumulate

import torch

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import lookup
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    FULL,
    INIT,
    LENGTH,
    RMSNORM,
    SIZES,
    Pattern,
    biases,
    dense,
    every,
    layer_types,
    only,
    qk_norm,
)
from modular_gpt.pretrained.families.expert_keys import (
    NORM_TOPK,
    SPARSE_STEP,
    experts,
    mlp_layer_types,
    router_loss,
    shared,
    shared_width,
    sigmoid_router,
)
from modular_gpt.pretrained.families.gemma import NORM as NORM_FROM_ONE
from modular_gpt.pretrained.families.latent import LATENT
from modular_gpt.pretrained.families.llama import START
from modular_gpt.pretrained.families.moe import SHARED_GATE
from modular_gpt.pretrained.families.rope_config import Layers, rope
from modular_gpt.pretrained.families.tensor_names import (
    ATTENTION,
    ENDS,
    GATED,
    LAYER,
    OURS,
    PRE_NORMS,
    QK_NORM,
    QKV,
    in_layer,
    latent_attention,
    shared_expert,
    unless,
    where,
)
from modular_gpt.pretrained.families.tensor_names import experts as expert_tensors
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count, per_layer
from modular_gpt.pretrained.tensor_map import FUSED, FUSED_PER_HEAD, TensorMapping, Transform, affine
from modular_gpt.pretrained.weight_files import LazyTensor, RowsOfSeveral, renamed

LINEAR = "linear_attention"
DELTA, MIXER, RATE = f"{LAYER}.linear_attn", f"{OURS}.attention", f"{OURS}.attention.rate.weight"


def recurrent_types(settings: HFConfig, pattern: Pattern) -> list[str]:
    """The type of each layer, with attention to all tokens or with a recurrent mixer."""
    return layer_types(settings, pattern, (FULL, LINEAR))


def mixers(component: str, pattern: Pattern, others: str = "") -> Keys:
    """A recurrent mixer in the layers of the type ``linear_attention``, and the attention ``others`` elsewhere."""

    def read(settings: HFConfig) -> PlainDict:
        n_heads, n_kv_heads = settings["num_attention_heads"], settings["num_key_value_heads"]
        full = others or ("mha" if n_kv_heads in (None, n_heads) else "gqa")
        names = (component if name == LINEAR else full for name in recurrent_types(settings, pattern))
        return {"attention.name": per_layer(names)}

    def write(view: ModelView) -> PlainDict:
        mixer = lookup("attention", component).component
        return {"layer_types": [LINEAR if layer.attention.component is mixer else FULL for layer in view.layers]}

    return Keys(read, write)


def rotated(pattern: Pattern) -> Layers:
    """Rotary positions in the layers with softmax attention."""
    return Layers(lambda settings: [name == FULL for name in recurrent_types(settings, pattern)])


def interval(settings: HFConfig) -> list[str]:
    """Layer types where every fourth, or full_attention_interval-th, layer attends to all tokens."""
    return list(every(settings.get("full_attention_interval") or 4, FULL, LINEAR)(settings))


DELTA_NAMES = {
    "num_value_heads": "value_heads",
    "num_key_heads": "key_heads",
    "key_head_dim": "key_dim",
    "value_head_dim": "value_dim",
    "conv_kernel_dim": "kernel",
}
DELTA_SIZES = tuple(key(f"linear_{name}", f"attention@gated_delta.{ours}") for name, ours in DELTA_NAMES.items())
DELTA_EPS = Keys(lambda settings: {"attention@gated_delta.eps": float(settings["rms_norm_eps"])})
SILU = only(hidden_act="silu")  # which is also that of the convolutions, or of queries, keys and values
QWEN = (
    START,
    NORM_FROM_ONE,
    dense(),
    rope(partial=True, where=rotated(interval)),
    biases(),
    qk_norm(weight_offset=True),
    always({"attention@mha.output_gate": "sigmoid"}),
    mixers("gated_delta", interval),
    DELTA_SIZES,
    DELTA_EPS,
    SILU,
)
QWEN_MOE = (
    experts("num_experts"),
    router_loss(),
    NORM_TOPK,
    SPARSE_STEP,
    shared_width("shared_expert_intermediate_size", gate=True),
)
# kernels of depthwise convolutions, (channels, 1, width), concatenated by channel
CONVOLUTIONS = Transform(
    lambda hf, shapes, count: hf[:, 0].split([shape[0] for shape in shapes]),
    lambda ours, count: torch.cat(list(ours))[:, None],
)
CONVS = tuple(f"{MIXER}.{name}_conv.weight" for name in ("query", "key", "value"))
DECAYS = [
    TensorMapping(f"{DELTA}.A_log", (f"{MIXER}.log_decay",)),
    TensorMapping(f"{DELTA}.dt_bias", (f"{MIXER}.decay_offset",)),
]


def delta_layers(prefix: str, **names: str) -> list[TensorMapping]:
    """Layers of a gated delta rule, theirs by ours."""
    return where(RATE, in_layer(prefix, **{f"attention__{ours}": name for ours, name in names.items()}))


def split_convolutions(prefix: str) -> list[TensorMapping]:
    """The convolutions of queries, keys and values as tensors of their own."""
    pairs = zip((f"{prefix}.{letter}_conv1d.weight" for letter in "qkv"), CONVS, strict=True)
    return [TensorMapping(hf_name, (ours,), CONVOLUTIONS) for hf_name, ours in pairs]


PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "norm": "o_norm", "out": "o_proj"}
QKVZ = (*(f"{name}.weight" for name in QKV), f"{MIXER}.gate.weight")
QWEN_DELTA = [
    TensorMapping(f"{DELTA}.conv1d.weight", CONVS, CONVOLUTIONS),
    *DECAYS,
    *delta_layers(DELTA, norm="norm", out="out_proj"),
]
# for each key head, the queries, keys, values and gates, and the rates and decays
QWEN_NEXT_DELTA = [
    TensorMapping(f"{DELTA}.in_proj_qkvz.weight", QKVZ, FUSED_PER_HEAD, where=RATE, counted="key_heads"),
    TensorMapping(f"{DELTA}.in_proj_ba.weight", (RATE, f"{MIXER}.decay.weight"), FUSED_PER_HEAD, counted="key_heads"),
]
QWEN_3_5_DELTA = [
    TensorMapping(f"{DELTA}.in_proj_qkv.weight", QKVZ[:3], FUSED, where=RATE),
    *delta_layers(DELTA, gate="in_proj_z", rate="in_proj_b", decay="in_proj_a"),
]
# for each head, the query and the gate
GATED_QUERY = affine(f"{LAYER}.self_attn.q_proj", QKV[0], f"{MIXER}.gate", weight=FUSED_PER_HEAD, bias=FUSED_PER_HEAD)
QWEN_ATTENTION = unless(RATE, [*GATED_QUERY, *(one for one in ATTENTION if ".q_proj" not in one.hf_name), *QK_NORM])
QWEN_TENSORS = (ENDS, PRE_NORMS, GATED, QWEN_ATTENTION, QWEN_DELTA)
PREDICTOR = (r"mtp\..*",)  # predicts a further token while training


def _kimi_types(settings: HFConfig) -> list[str]:
    """Kimi's layers that attend to all tokens: those listed, counted from 1, or every fourth one after the first."""
    listed = settings["linear_attn_config"] or {}
    full, count = listed.get("full_attn_layers"), layer_count(settings)
    recurrent = listed.get("kda_layers")
    if full is None or recurrent is None:
        return [FULL if i and i % 4 == 0 else LINEAR for i in range(count)]
    return [FULL if i + 1 in full else LINEAR if i + 1 in recurrent else "none" for i in range(count)]


def _kimi_dense(settings: HFConfig) -> list[str]:
    first = settings["first_k_dense_replace"]
    return ["dense" if index < first else "sparse" for index in range(layer_count(settings))]


def _read_kda(settings: HFConfig) -> PlainDict:
    nested = settings["linear_attn_config"] or {}
    names = {"num_heads": "linear_num_heads", "head_dim": "linear_head_dim"}
    n_heads, width = (nested.get(name, settings[outer]) for name, outer in names.items())
    return {
        "attention@gated_delta.value_heads": n_heads,
        "attention@gated_delta.key_dim": width,
        "attention@gated_delta.value_dim": width,
        "attention@gated_delta.rank": width,
        "attention@gated_delta.kernel": nested.get("short_conv_kernel_size", settings["linear_conv_kernel_dim"]),
    }


def _write_kda(view: ModelView) -> PlainDict:
    if not view.has("attention@gated_delta.key_dim"):
        return {}
    names = {"linear_num_heads": "value_heads", "linear_head_dim": "key_dim", "linear_conv_kernel_dim": "kernel"}
    return {name: view[f"attention@gated_delta.{ours}"] for name, ours in names.items()}


KIMI = (
    SIZES,
    LENGTH,
    INIT,
    RMSNORM,
    dense(),
    LATENT,
    always({"pos.name": "none"}),
    mixers("kda", _kimi_types, "mla"),
    Keys(_read_kda, _write_kda),
    DELTA_EPS,
    experts("num_local_experts"),
    sigmoid_router("routed_scaling_factor"),
    shared("n_shared_experts"),
    mlp_layer_types(_kimi_dense),
    SILU,
)
KIMI_ATTENTION, KIMI_MLP = f"{LAYER}.self_attn", f"{LAYER}.block_sparse_moe"
FLAT = Transform(lambda hf, shapes, count: [hf.flatten()], lambda ours, count: ours[0].view(1, 1, -1, 1))
KIMI_DELTA = [
    *split_convolutions(KIMI_ATTENTION),
    TensorMapping(f"{KIMI_ATTENTION}.A_log", (f"{MIXER}.log_decay",), FLAT),
    TensorMapping(f"{KIMI_ATTENTION}.dt_bias", (f"{MIXER}.decay_offset",)),
    *delta_layers(KIMI_ATTENTION, **PROJECTIONS, rate="b_proj", gate_down="g_a_proj", gate="g_b_proj"),
    *delta_layers(KIMI_ATTENTION, decay_down="f_a_proj", decay="f_b_proj"),
]
KIMI_EXPERTS = [
    *expert_tensors(KIMI_MLP, ("w1", "w3", "w2"), shared=""),
    *shared_expert(f"{KIMI_MLP}.shared_experts"),
    *in_layer(KIMI_MLP, ffn__gate="gate_proj", ffn__up="up_proj", ffn__down="down_proj"),
]


def _olmo_types(settings: HFConfig) -> list[str]:
    """Every fourth layer attends to all tokens; where there are fewer than four, the last one."""
    types = list(every(4, FULL, LINEAR)(settings))
    return types if FULL in types else [*types[:-1], FULL]


def _read_olmo(settings: HFConfig) -> PlainDict:
    """OLMo's sizes of the mixer, which depend on each other, and its block, which depends on the type of the layer."""
    n_heads, width = settings["num_attention_heads"], settings["linear_key_head_dim"]
    key_heads = settings["linear_num_key_heads"] or n_heads
    width = int(0.75 * settings["hidden_size"] / key_heads) if width is None else width
    types, value_width = recurrent_types(settings, _olmo_types), settings["linear_value_head_dim"]
    return {
        "attention@gated_delta.value_heads": settings["linear_num_value_heads"] or n_heads,
        "attention@gated_delta.key_heads": key_heads,
        "attention@gated_delta.key_dim": width,
        "attention@gated_delta.value_dim": 2 * width if value_width is None else value_width,
        "attention@gated_delta.eps": 1e-5,
        "block.topology": per_layer("pre" if name == LINEAR else "post_residual" for name in types),
    }


OLMO = (
    START,
    RMSNORM,
    dense(),
    rope(where=rotated(_olmo_types)),
    biases(),
    qk_norm("full"),
    mixers("gated_delta", _olmo_types),
    DELTA_SIZES,
    key("linear_allow_neg_eigval", "attention@gated_delta.negative"),
    Keys(_read_olmo),
    SILU,
)
OLMO_DELTA = [
    *split_convolutions(DELTA),
    *DECAYS,
    *delta_layers(DELTA, **PROJECTIONS, rate="b_proj", decay="a_proj", gate="g_proj"),
]
OLMO_NORMS = in_layer(
    LAYER,
    attention_norm="attention_layer_norm",
    ffn_norm="feedforward_layer_norm",
    attention_post_norm="feedforward_layer_norm",
    ffn_post_norm="post_feedforward_layernorm",
)
OLMO_NAMES = renamed(
    (r"\.input_layernorm\.", ".attention_layer_norm."), (r"\.post_attention_layernorm\.", ".feedforward_layer_norm.")
)
_CONVOLUTION = re.compile(r"(?P<mixer>.+)\.q_conv1d\.weight")


def recut_convolutions(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """A view in which the convolutions of queries, keys and values have as many channels as their projections.

    transformers saves them cut into equal thirds, whatever these numbers are.
    """
    found = dict(tensors)
    for match in filter(None, map(_CONVOLUTION.fullmatch, tensors)):
        names, projections = ([f"{match['mixer']}.{one}_{kind}.weight" for one in "qkv"] for kind in ("conv1d", "proj"))
        if not tensors.keys() >= {*names, *projections}:
            continue
        parts = tuple(tensors[name] for name in names)
        ends = [0, *accumulate(tensors[name].shape[0] for name in projections)]
        if ends[-1] == sum(part.shape[0] for part in parts):
            found |= {name: RowsOfSeveral(parts, *ends[i : i + 2]) for i, name in enumerate(names)}
    return found


OLMO_INIT = dict.fromkeys(("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max",
                           "linear_dt_init_floor"), ANY)  # fmt: skip


FAMILIES = [
    Family(
        "qwen3_next",
        (QWEN, QWEN_MOE),
        (*QWEN_TENSORS, QWEN_NEXT_DELTA, expert_tensors(shared="shared_expert"), SHARED_GATE),
        ignored=PREDICTOR,
    ),
    Family(
        "qwen3_5_text",
        QWEN,
        (*QWEN_TENSORS, QWEN_3_5_DELTA),
        harmless={f"rope_parameters.mrope_{name}": ANY for name in ("section", "interleaved")},
        ignored=PREDICTOR,
    ),
    Family(
        "kimi_linear",
        KIMI,
        (ENDS, PRE_NORMS, unless(RATE, latent_attention()), KIMI_DELTA, KIMI_EXPERTS),
        harmless={
            **dict.fromkeys(("head_dim", "qk_head_dim", "rope_theta", "use_grouped_topk"), ANY),
            "moe_router_activation_func": ("sigmoid",),
            "moe_layer_freq": (1,),
            "mla_use_nope": (True,),
        },
        defaults={"linear_attn_config": None, "first_k_dense_replace": 1},
        views=(renamed((r"\.mlp\.", ".block_sparse_moe.")),),
    ),
    Family(
        "olmo_hybrid",
        OLMO,
        (ENDS, OLMO_NORMS, unless(RATE, [*ATTENTION, *QK_NORM]), OLMO_DELTA, GATED),
        harmless=OLMO_INIT,
        views=(OLMO_NAMES, recut_convolutions),
    ),
]  # fmt: skip
