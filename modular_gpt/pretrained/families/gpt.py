"""GPT-2 and its relatives, with LayerNorm and a feed-forward network without gate.

GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
BLOOM: https://arxiv.org/abs/2211.05100, MPT: https://www.databricks.com/blog/mpt-7b
"""

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
from modular_gpt.pretrained.families.tensor_names import IN_OUT, OURS, QKV, in_layer
from modular_gpt.pretrained.family import Family, dropout, must_be
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key, layer_count, per_layer
from modular_gpt.pretrained.tensor_map import FUSED, FUSED_PER_HEAD, TensorMapping, affine, transposed

LAYER, BLOCK = "transformer.h.{layer}", "transformer.blocks.{layer}"
BIASED = always({"bias": True})
START = (*SIZES, LENGTH, INIT, PLAIN_HEADS, BIASED)
EPS = layernorm("layer_norm_epsilon")
MLP = dense("mlp", True, "n_inner", "activation_function", times=4)
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

FAMILIES = [
    Family(
        "gpt2",
        (START, EPS, MLP, biases(True), always({"pos.name": "learned"}), DROPOUT, Keys(_read_scale, _write_scale),
         only(add_cross_attention=False)),
        (GPT2_ENDS, GPT2_NORMS, CONV1D),
        harmless={"reorder_and_upcast_attn": ANY},
        prefix="transformer.",
        ignored=(CAUSAL_MASK,),
        defaults={"add_cross_attention": False},
    ),
    Family(
        "bloom",
        (SIZES, INIT, PLAIN_HEADS, BIASED, EPS, FOUR_TIMES, biases(True), BLOOM, dropouts("hidden_dropout"),
         key("attention_dropout", "attention.dropout", float),
         only(apply_residual_connection_post_layernorm=False)),
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
