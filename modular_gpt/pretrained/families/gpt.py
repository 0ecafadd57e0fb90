"""GPT-2 and its relatives, with LayerNorm and a feed-forward network without gate.

GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
BLOOM: https://arxiv.org/abs/2211.05100, MPT: https://www.databricks.com/blog/mpt-7b
"""

from typing import Any

import torch.nn.functional as F

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping.hf_config import ANY, HFConfig, harmless
from modular_gpt.mapping.setting_map import (
    Keys,
    ModelView,
    PerLayer,
    always,
    key,
    layer_count,
    layers,
    must_be,
    only,
    switch,
)
from modular_gpt.mapping.tensor_map import FUSED, FUSED_PER_HEAD, IN_OUT, Transform, modules, tensors, transposed
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families.decoder_keys import HEADS, WINDOW_PATH, biases, dense, dropouts, layernorm
from modular_gpt.pretrained.families.tensor_names import QKV, attention
from modular_gpt.pretrained.family import Family

LAYER = "transformer.h.{layer}"
SCALE, TOPOLOGY = "attention@mha.scale", "block.topology"
BIASED, LEARNED = always({"bias": True}), always({"pos.name": "learned"})
START = (keys.SIZES, keys.LENGTH, keys.INIT, keys.PLAIN_HEADS, BIASED)
EPS = layernorm("layer_norm_epsilon")
MLP = dense("mlp", True, "n_inner", "activation_function", times=4)
DROPOUT = dropouts("resid_pdrop", "embd_pdrop", "attn_pdrop")
GPT = (START, EPS, MLP, biases(True), LEARNED, DROPOUT)
NO_CROSS_ATTENTION = only(add_cross_attention=False)
HEAD = modules("lm_head = head")
ENDS = [*modules("transformer.{wte,ln_f} = {embedding,final_norm}"), *HEAD]
GPT2_ENDS = [*ENDS, *modules("transformer.wpe = positions.0.table")]
GPT2_NORMS = modules("{ln_1,ln_2} = {attention,ffn}_norm", LAYER)
C_FC = modules("mlp.{c_fc,c_proj} = ffn.{up,down}", LAYER)
CONV1D = [
    *modules(f"attn.c_attn = {QKV}", LAYER, transposed(FUSED)),
    *modules("{attn.c_proj,mlp.c_fc,mlp.c_proj} = {attention.out,ffn.up,ffn.down}", LAYER, IN_OUT),
]
CAUSAL_MASK = (r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|masked_bias)",)  # a table in older files


def _read_scale(settings: HFConfig) -> PlainDict:
    """GPT-2's scale of scores, which may be none or divided by the number of the layer."""
    scaled = settings["scale_attn_weights"]
    if not settings["scale_attn_by_inverse_layer_idx"]:
        return {SCALE: None if scaled else 1.0}
    scale = (settings["hidden_size"] // settings["num_attention_heads"]) ** -0.5 if scaled else 1.0
    return {SCALE: PerLayer(scale / (index + 1) for index in range(layer_count(settings)))}


def _write_scale(view: ModelView) -> PlainDict:
    scales = view.each(SCALE)
    return {"scale_attn_weights": scales[0] != 1.0, "scale_attn_by_inverse_layer_idx": scales[-1] != scales[0]}


GPT1_ENDS = [*modules("transformer.{tokens_embed,positions_embed} = {embedding,positions.0.table}"), *HEAD]
GPT1_NAMES = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
GPT1_ACTIVATION = keys.activation_key("afn", "ffn@mlp.activation", GPT1_NAMES)


def _multi_query(settings: HFConfig) -> PlainDict:
    single = settings["multi_query"]
    return {"attention.name": "mqa" if single else "mha", HEADS: 1 if single else settings["num_attention_heads"]}


BIGCODE = (
    Keys(_multi_query, lambda view: {"multi_query": view[HEADS] == 1}),
    switch("scale_attn_weights", SCALE, None, 1.0),
    NO_CROSS_ATTENTION,
)
BIGCODE_TENSORS = [
    *modules(f"c_attn = {QKV}", f"{LAYER}.attn", FUSED_PER_HEAD, "n_kv_heads"),
    *modules("attn.c_proj = attention.out", LAYER),
]


def _local(settings: HFConfig) -> list[bool]:
    """GPT-Neo's layers with a window."""
    groups = settings["attention_types"] or [[["global", "local"], 12]]
    types = [name for names, count in groups for _ in range(count) for name in names]
    settings.ignore("attention_layers")  # the same, written out
    if len(types) != layer_count(settings) or not set(types) <= {"global", "local"}:
        raise CheckpointError(f"attention_types must be global or local for each layer, got {printable(repr(groups))}")
    return [name == "local" for name in types]


NEO = (
    dense("mlp", True, "intermediate_size", "activation_function", times=4),
    layers(
        _local, {WINDOW_PATH: lambda settings: settings["window_size"]}, {WINDOW_PATH: None}, WINDOW_PATH,
        lambda has: {"attention_types": [[["local" if one else "global" for one in has], 1]]},
    ),
    Keys(lambda settings: {SCALE: 1.0}, lambda view: {"window_size": view[WINDOW_PATH]} if view[WINDOW_PATH] else {}),
    dropouts("resid_dropout", "embed_dropout", "attention_dropout"),
)  # fmt: skip
OPT_LAYER = "model.decoder.layers.{layer}"
# a table whose first two rows stand for no position
AFTER_TWO = Transform(lambda hf, shapes, count: [hf[2:]], lambda ours, count: F.pad(ours[0], (0, 0, 2, 0)))
OPT_TENSORS = [
    *modules("{embed_tokens,final_layer_norm} = {embedding,final_norm}", "model.decoder"),
    *modules("project_{in,out} = embedding_{in,out}", "model.decoder"),
    *tensors("model.decoder.embed_positions.weight = positions.0.table.weight", "", AFTER_TWO),
    *HEAD,
    *modules("{self_attn_layer_norm,final_layer_norm,fc1,fc2} = {attention_norm,ffn_norm,ffn.up,ffn.down}", OPT_LAYER),
    *modules("{self_attn,final}_layer_norm = {attention,ffn}_post_norm", OPT_LAYER),
    *attention(f"{OPT_LAYER}.self_attn", "q_proj,k_proj,v_proj,out_proj"),
]


def _read_opt(settings: HFConfig) -> PlainDict:
    before, width = settings["do_layer_norm_before"], settings["word_embed_proj_dim"]
    return {
        "embed_width": None if width == settings["hidden_size"] else width,
        TOPOLOGY: "pre" if before else "post",
        "final_norm": not settings["_remove_final_layer_norm"] and before,
    }


def _write_opt(view: ModelView) -> PlainDict:
    before = view[TOPOLOGY] == "pre"
    width, removed = view["embed_width"] or view["d_model"], before and not view.config.has_final_norm
    return {"do_layer_norm_before": before, "word_embed_proj_dim": width, "_remove_final_layer_norm": removed}


OPT = (
    (keys.SIZES, keys.LENGTH, keys.PLAIN_HEADS, BIASED, layernorm(1e-5), biases(True), LEARNED),
    dense("mlp", True, "ffn_dim", "activation_function"),
    Keys(_read_opt, _write_opt),
    key("init_std", "init_std"),
    dropouts("dropout", "dropout", "attention_dropout"),
    only(enable_bias=True, layer_norm_elementwise_affine=True),
)
H_TO_4H = modules("mlp.dense_{h_to_4h,4h_to_h} = ffn.{up,down}", LAYER)
BLOOM_QKV = modules(f"query_key_value = {QKV}", f"{LAYER}.self_attention", FUSED_PER_HEAD, "n_kv_heads")
BLOOM_ENDS = [*modules("transformer.{word_embeddings,ln_f} = {embedding,final_norm}"), *HEAD]
BLOOM_TENSORS = [
    *modules("transformer.word_embeddings_layernorm = embedding_norm"),
    *modules("{input,post_attention}_layernorm = {attention,ffn}_norm", LAYER),
    *modules("self_attention.dense = attention.out", LAYER),
]
FOUR_TIMES = dense("mlp", True, "", "", times=4)
BLOOM = (
    always({"pos.name": "alibi", "embed_norm": True, "ffn.activation": "gelu_tanh"}),
    # ALiBi has no limit: transformers does not read the length that a model was trained with
    Keys(lambda s: {"context_length": s.get("seq_length") or 2048}, lambda v: {"seq_length": v["context_length"]}),
    switch("apply_residual_connection_post_layernorm", TOPOLOGY, "norm_residual", "pre"),
    dropouts("hidden_dropout", None, "attention_dropout"),
)
MPT_FIXED: dict[str, Any] = {"alibi": True, "alibi_bias_max": 8, "prefix_lm": False, "qk_ln": False}


def _read_mpt(settings: HFConfig) -> PlainDict:
    nested = settings["attn_config"]
    given = nested if isinstance(nested, HFConfig) else HFConfig(nested or {})
    attention = given.with_defaults({**MPT_FIXED, "attn_pdrop": 0.0, "clip_qkv": None, "softmax_scale": None})
    # transformers computes with a largest bias of 8, whatever the file has; the authors' own code reads it
    must_be(attention, **MPT_FIXED)
    rates, always_ours = DROPOUT_OF_MPT.from_hf(attention), {"pos.name": "alibi", "pos.max_bias": 8.0}
    clip = attention["clip_qkv"] or None
    return {**rates, **always_ours, SCALE: attention["softmax_scale"], "attention@mha.clip_qkv": clip}


DROPOUT_OF_MPT = dropouts("attn_pdrop")[0]
MPT = (
    (
        keys.SIZES,
        key("max_seq_len", "context_length"),
        keys.INIT,
        keys.PLAIN_HEADS,
        layernorm("layer_norm_epsilon", bias=False),
    ),
    (dense("mlp", False, "", "", times=4), always({"ffn.activation": "gelu"}), biases(False)),
    Keys(_read_mpt, lambda v: {"attn_config": {"softmax_scale": v[SCALE], "clip_qkv": v["attention@mha.clip_qkv"]}}),
    only(no_bias=True, logit_scale=None),
)
MPT_HARMLESS = harmless(
    "expansion_ratio resid_pdrop emb_pdrop learned_pos_emb init_config embedding_fraction norm_type verbose"
    " attn_config.attn_impl",
    **{"attn_config.attn_type": "multihead_attention", "attn_config.attn_uses_sequence_id": False},
)
BLOCK = "transformer.blocks.{layer}"
MPT_TENSORS = [
    *modules("transformer.{wte,norm_f} = {embedding,final_norm}"),
    *HEAD,
    *modules(f"Wqkv = {QKV}", f"{BLOCK}.attn", FUSED),
    *modules("{norm_1,norm_2,attn.out_proj} = {attention_norm,ffn_norm,attention.out}", BLOCK),
    *modules("ffn.{up,down}_proj = ffn.{up,down}", BLOCK),
]  # fmt: skip

FAMILIES = [
    Family(
        "gpt2",
        (GPT, Keys(_read_scale, _write_scale), NO_CROSS_ATTENTION),
        (GPT2_ENDS, GPT2_NORMS, CONV1D),
        harmless={"reorder_and_upcast_attn": ANY},
        prefix="transformer.",
        ignored=CAUSAL_MASK,
        defaults={"add_cross_attention": False},
    ),
    Family(
        "openai-gpt",
        (START, EPS, FOUR_TIMES, GPT1_ACTIVATION, biases(True), LEARNED, DROPOUT, keys.topology("post")),
        (GPT1_ENDS, modules("{ln_1,ln_2} = {attention,ffn}_post_norm", LAYER), CONV1D),
        prefix="transformer.",
        ignored=CAUSAL_MASK,
    ),
    Family(
        "gpt_bigcode",
        (GPT, BIGCODE),
        (GPT2_ENDS, GPT2_NORMS, BIGCODE_TENSORS, C_FC),
        harmless=harmless("attention_softmax_in_fp32 scale_attention_softmax_in_fp32 num_key_value_heads"),
        prefix="transformer.",
        ignored=CAUSAL_MASK,
        defaults={"add_cross_attention": False},
    ),
    Family(
        "gpt_neo",
        (START, EPS, biases(False, True), LEARNED, NEO),
        (GPT2_ENDS, GPT2_NORMS, attention(f"{LAYER}.attn.attention", "q_proj,k_proj,v_proj,out_proj"), C_FC),
        prefix="transformer.",
        ignored=CAUSAL_MASK,
    ),
    Family(
        "opt",
        OPT,
        (OPT_TENSORS,),
    ),
    Family(
        "bloom",
        (keys.SIZES, keys.INIT, keys.PLAIN_HEADS, BIASED, EPS, FOUR_TIMES, biases(True), BLOOM),
        (BLOOM_ENDS, BLOOM_TENSORS, H_TO_4H, BLOOM_QKV),
        harmless=harmless("slow_but_exact n_inner offset_alibi skip_bias_add skip_bias_add_qkv masked_softmax_fusion"
                          " bias_dropout_fusion attention_softmax_in_fp32"),
        prefix="transformer.",
        synonyms={"n_embed": "hidden_size"},
    ),
    Family(
        "mpt",
        MPT,
        (MPT_TENSORS,),
        harmless=MPT_HARMLESS,
        prefix="transformer.",
    ),
]  # fmt: skip
