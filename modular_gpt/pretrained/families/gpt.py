"""GPT-2 and its relatives, with LayerNorm and a feed-forward network without gate.

GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
BLOOM: https://arxiv.org/abs/2211.05100, MPT: https://www.databricks.com/blog/mpt-7b
"""

import torch.nn.functional as F

from modular_gpt.core.errors import CheckpointError, printable, unknown
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    INIT,
    LENGTH,
    PLAIN_HEADS,
    SIZES,
    biases,
    dense,
    dropouts,
    layernorm,
    only,
)
from modular_gpt.pretrained.families.tensor_names import IN_OUT, OURS, QKV, attention, in_layer
from modular_gpt.pretrained.family import Family, dropout, must_be
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count, per_layer
from modular_gpt.pretrained.tensor_map import FUSED, FUSED_PER_HEAD, TensorMapping, Transform, affine, transposed

LAYER, BLOCK = "transformer.h.{layer}", "transformer.blocks.{layer}"
BIASED = always({"bias": True})
START = (*SIZES, LENGTH, INIT, PLAIN_HEADS, BIASED)
EPS = layernorm("layer_norm_epsilon")
MLP = dense("mlp", True, "n_inner", "activation_function", times=4)
LEARNED = always({"pos.name": "learned"})
DROPOUT = dropouts("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _read_scale(settings: HFConfig) -> PlainDict:
    """GPT-2's scale of scores, which may be none or divided by the number of the layer."""
    if not settings["scale_attn_by_inverse_layer_idx"]:
        return {"attention@mha.scale": None if settings["scale_attn_weights"] else 1.0}
    width = settings["hidden_size"] // settings["num_attention_heads"]
    scale = width**-0.5 if settings["scale_attn_weights"] else 1.0
    return {"attention@mha.scale": per_layer(scale / (index + 1) for index in range(layer_count(settings)))}


def _write_scale(view: ModelView) -> PlainDict:
    scales = view.each("attention@mha.scale")
    return {"scale_attn_weights": scales[0] != 1.0, "scale_attn_by_inverse_layer_idx": scales[-1] != scales[0]}


GPT2_ENDS = [
    *affine("transformer.wte", "embedding"),
    *affine("transformer.wpe", "positions.0.table"),
    *affine("transformer.ln_f", "final_norm"),
    *affine("lm_head", "head"),
]
GPT2_NORMS = in_layer(LAYER, attention_norm="ln_1", ffn_norm="ln_2")
CONV1D = [
    *affine(f"{LAYER}.attn.c_attn", *QKV, weight=transposed(FUSED), bias=FUSED),
    *affine(f"{LAYER}.attn.c_proj", f"{OURS}.attention.out", weight=IN_OUT),
    *affine(f"{LAYER}.mlp.c_fc", f"{OURS}.ffn.up", weight=IN_OUT),
    *affine(f"{LAYER}.mlp.c_proj", f"{OURS}.ffn.down", weight=IN_OUT),
]
CAUSAL_MASK = r"transformer\.h\.\d+\.attn\.(bias|masked_bias)"  # a table in older files

BLOOM_ENDS = [
    *affine("transformer.word_embeddings", "embedding"),
    *affine("transformer.ln_f", "final_norm"),
    *affine("lm_head", "head"),
]
BLOOM_LAYER = in_layer(
    LAYER,
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
    attention__out="self_attention.dense",
    ffn__up="mlp.dense_h_to_4h",
    ffn__down="mlp.dense_4h_to_h",
)
BLOOM_QKV = affine(
    f"{LAYER}.self_attention.query_key_value", *QKV, weight=FUSED_PER_HEAD, bias=FUSED_PER_HEAD, counted="n_kv_heads"
)
BLOOM_EMBEDDING_NORM = affine("transformer.word_embeddings_layernorm", "embedding_norm")
NORMED_RESIDUAL = key(
    "apply_residual_connection_post_layernorm",
    "block.topology",
    lambda normed: "norm_residual" if normed else "pre",
    lambda topology: topology == "norm_residual",
)
FOUR_TIMES = Keys(lambda s: {"ffn.name": "mlp", "ffn.hidden": 4 * s["hidden_size"]})
BLOOM = (
    always({"pos.name": "alibi", "embed_norm": True, "ffn.activation": "gelu_tanh", "ffn.bias": True}),
    # ALiBi has no limit: transformers does not read the length that a model was trained with
    Keys(lambda s: {"context_length": s.get("seq_length") or 2048}, lambda v: {"seq_length": v["context_length"]}),
)

_MPT_ATTENTION = {
    "alibi": True,
    "alibi_bias_max": 8,
    "attn_pdrop": 0.0,
    "clip_qkv": None,
    "prefix_lm": False,
    "qk_ln": False,
    "softmax_scale": None,
}


def _read_mpt(settings: HFConfig) -> PlainDict:
    nested = settings["attn_config"]
    attention = (nested if isinstance(nested, HFConfig) else HFConfig(nested or {})).with_defaults(_MPT_ATTENTION)
    # transformers computes with a largest bias of 8, whatever the file has; the authors' own code reads it
    must_be(attention, alibi=True, alibi_bias_max=8, prefix_lm=False, qk_ln=False)
    return {
        "pos.name": "alibi",
        "pos.max_bias": 8.0,
        "dropout": dropout(attention, "attn_pdrop"),
        "attention@mha.scale": attention["softmax_scale"],
        "attention@mha.clip_qkv": attention["clip_qkv"] or None,
        "ffn.activation": "gelu",
        "ffn.bias": False,
    }


def _write_mpt(view: ModelView) -> PlainDict:
    scale, clip = view["attention@mha.scale"], view["attention@mha.clip_qkv"]
    return {"attn_config": {"softmax_scale": scale, "clip_qkv": clip}}


MPT_TENSORS = [
    *affine("transformer.wte", "embedding"),
    *affine("transformer.norm_f", "final_norm"),
    *affine("lm_head", "head"),
    TensorMapping(f"{BLOCK}.attn.Wqkv.weight", tuple(f"{name}.weight" for name in QKV), FUSED),
    *in_layer(
        BLOCK,
        attention_norm="norm_1",
        ffn_norm="norm_2",
        attention__out="attn.out_proj",
        ffn__up="ffn.up_proj",
        ffn__down="ffn.down_proj",
    ),
]
MPT_HARMLESS = {
    **dict.fromkeys(("expansion_ratio", "resid_pdrop", "emb_pdrop", "learned_pos_emb", "init_config"), ANY),
    **dict.fromkeys(("embedding_fraction", "norm_type", "verbose", "attn_config.attn_impl"), ANY),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.attn_uses_sequence_id": (False,),
}


def _attention_types(settings: HFConfig) -> list[str]:
    """GPT-Neo's type of each layer, global or local."""
    groups = settings["attention_types"] or [[["global", "local"], 12]]
    types = [name for names, count in groups for _ in range(count) for name in names]
    settings.ignore("attention_layers")  # the same, written out
    if len(types) != layer_count(settings) or not set(types) <= {"global", "local"}:
        raise CheckpointError(f"attention_types must be global or local for each layer, got {printable(repr(groups))}")
    return types


def _read_neo(settings: HFConfig) -> PlainDict:
    width = settings["window_size"]
    windows = (width if name == "local" else None for name in _attention_types(settings))
    return {"attention@mha.window": per_layer(windows), "attention@mha.scale": 1.0}


def _write_neo(view: ModelView) -> PlainDict:
    types = ["global" if window is None else "local" for window in view.each("attention@mha.window")]
    width = view["attention@mha.window"]
    return {"attention_types": [[types, 1]], **({"window_size": width} if width else {})}


def _multi_query(settings: HFConfig) -> PlainDict:
    single = settings["multi_query"]
    return {
        "attention.name": "mqa" if single else "mha",
        "attention@mha.n_kv_heads": 1 if single else settings["num_attention_heads"],
    }


SCALED = key("scale_attn_weights", "attention@mha.scale", lambda has: None if has else 1.0, lambda scale: scale != 1.0)
MULTI_QUERY = Keys(_multi_query, lambda view: {"multi_query": view["attention@mha.n_kv_heads"] == 1})
GPT1_ENDS = [
    *affine("transformer.tokens_embed", "embedding"),
    *affine("transformer.positions_embed", "positions.0.table"),
    *affine("lm_head", "head"),
]
GPT1_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}


def _gpt1_activation(settings: HFConfig) -> PlainDict:
    if settings["afn"] not in GPT1_ACTIVATIONS:
        raise CheckpointError(unknown("activation function", str(settings["afn"]), GPT1_ACTIVATIONS))
    return {"ffn@mlp.activation": GPT1_ACTIVATIONS[settings["afn"]]}


GPT1_NAMES = {ours: name for name, ours in reversed(GPT1_ACTIVATIONS.items())}
GPT1_ACTIVATION = Keys(_gpt1_activation, lambda v: {"afn": GPT1_NAMES.get(v["ffn@mlp.activation"], "none")})
GPT1_MLP = (always({"ffn.name": "mlp", "ffn.bias": True}), Keys(lambda s: {"ffn.hidden": 4 * s["hidden_size"]}))
BIGCODE = [
    *affine(f"{LAYER}.attn.c_attn", *QKV, weight=FUSED_PER_HEAD, bias=FUSED_PER_HEAD, counted="n_kv_heads"),
    *in_layer(LAYER, attention__out="attn.c_proj", ffn__up="mlp.c_fc", ffn__down="mlp.c_proj"),
]
NEO_MLP = dense("mlp", True, "intermediate_size", "activation_function", times=4)
NEO_ATTENTION = attention(f"{LAYER}.attn.attention", "q_proj", "k_proj", "v_proj", "out_proj")
NEO_MASK = r"transformer\.h\.\d+\.attn\.attention\.(bias|masked_bias)"

OPT_LAYER = "model.decoder.layers.{layer}"
# a table whose first two rows stand for no position
AFTER_TWO = Transform(lambda hf, shapes, count: [hf[2:]], lambda ours, count: F.pad(ours[0], (0, 0, 2, 0)))
OPT_ENDS = [
    *affine("model.decoder.embed_tokens", "embedding"),
    TensorMapping("model.decoder.embed_positions.weight", ("positions.0.table.weight",), AFTER_TWO),
    *affine("model.decoder.final_layer_norm", "final_norm"),
    *affine("model.decoder.project_in", "embedding_in"),
    *affine("model.decoder.project_out", "embedding_out"),
    *affine("lm_head", "head"),
]
OPT_TENSORS = [
    *in_layer(
        OPT_LAYER,
        attention_norm="self_attn_layer_norm",
        ffn_norm="final_layer_norm",
        attention_post_norm="self_attn_layer_norm",
        ffn_post_norm="final_layer_norm",
        ffn__up="fc1",
        ffn__down="fc2",
    ),
    *attention(f"{OPT_LAYER}.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
]


def _read_opt(settings: HFConfig) -> PlainDict:
    before, width = settings["do_layer_norm_before"], settings["word_embed_proj_dim"]
    return {
        "embed_width": None if width == settings["hidden_size"] else width,
        "block.topology": "pre" if before else "post",
        "final_norm": not settings["_remove_final_layer_norm"] and before,
    }


def _write_opt(view: ModelView) -> PlainDict:
    before = view["block.topology"] == "pre"
    width = view["embed_width"] or view["d_model"]
    removed = before and not view.config.has_final_norm
    return {"do_layer_norm_before": before, "word_embed_proj_dim": width, "_remove_final_layer_norm": removed}


OPT = (
    Keys(_read_opt, _write_opt),
    key("init_std", "init_std"),
    dropouts("dropout", "dropout", "attention_dropout"),
    only(enable_bias=True, layer_norm_elementwise_affine=True),
)

FAMILIES = [
    Family(
        "gpt2",
        (START, EPS, MLP, biases(True), LEARNED, DROPOUT, Keys(_read_scale, _write_scale),
         only(add_cross_attention=False)),
        (GPT2_ENDS, GPT2_NORMS, CONV1D),
        harmless={"reorder_and_upcast_attn": ANY},
        prefix="transformer.",
        ignored=(CAUSAL_MASK,),
        defaults={"add_cross_attention": False},
    ),
    Family(
        "openai-gpt",
        (START, EPS, GPT1_MLP, GPT1_ACTIVATION, biases(True), LEARNED, DROPOUT, always({"block.topology": "post"})),
        (GPT1_ENDS, in_layer(LAYER, attention_post_norm="ln_1", ffn_post_norm="ln_2"), CONV1D),
        prefix="transformer.",
        ignored=(CAUSAL_MASK,),
    ),
    Family(
        "gpt_bigcode",
        (START, EPS, MLP, MULTI_QUERY, biases(True), LEARNED, DROPOUT, SCALED, only(add_cross_attention=False)),
        (GPT2_ENDS, GPT2_NORMS, BIGCODE),
        harmless=dict.fromkeys(
            ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "num_key_value_heads"), ANY
        ),
        prefix="transformer.",
        ignored=(CAUSAL_MASK,),
        defaults={"add_cross_attention": False},
    ),
    Family(
        "gpt_neo",
        (START, EPS, NEO_MLP, biases(False, True), LEARNED,
         dropouts("resid_dropout", "embed_dropout", "attention_dropout"), Keys(_read_neo, _write_neo)),
        (GPT2_ENDS, GPT2_NORMS, NEO_ATTENTION, in_layer(f"{LAYER}.mlp", ffn__up="c_fc", ffn__down="c_proj")),
        prefix="transformer.",
        ignored=(NEO_MASK,),
    ),
    Family(
        "opt",
        (SIZES, LENGTH, PLAIN_HEADS, BIASED, layernorm(1e-5), dense("mlp", True, "ffn_dim", "activation_function"),
         biases(True), LEARNED, OPT),
        (OPT_ENDS, OPT_TENSORS),
        prefix="model.",
    ),
    Family(
        "bloom",
        (SIZES, INIT, PLAIN_HEADS, BIASED, EPS, FOUR_TIMES, biases(True), BLOOM, dropouts("hidden_dropout"),
         key("attention_dropout", "attention.dropout", float), NORMED_RESIDUAL),
        (BLOOM_ENDS, BLOOM_EMBEDDING_NORM, BLOOM_LAYER, BLOOM_QKV),
        harmless=dict.fromkeys(
            ("slow_but_exact", "n_inner", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv",
             "attention_softmax_in_fp32", "masked_softmax_fusion", "bias_dropout_fusion"),
            ANY,
        ),
        prefix="transformer.",
        synonyms={"n_embed": "hidden_size"},
    ),
    Family(
        "mpt",
        (SIZES, key("max_seq_len", "context_length"), INIT, PLAIN_HEADS, layernorm("layer_norm_epsilon", bias=False),
         FOUR_TIMES, biases(False), Keys(_read_mpt, _write_mpt), only(no_bias=True, logit_scale=None)),
        (MPT_TENSORS,),
        harmless=MPT_HARMLESS,
        prefix="transformer.",
    ),
]  # fmt: skip
