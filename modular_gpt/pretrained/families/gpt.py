"""GPT-2 and its relatives, with LayerNorm and a feed-forward network without gate.

GPT-2: https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
BLOOM: https://arxiv.org/abs/2211.05100, MPT: https://www.databricks.com/blog/mpt-7b
"""

import torch.nn.functional as F

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import ANY, Flags, HFConfig, Keys, ModelView, PerLayer, Transform, harmless
from modular_gpt.mapping.layer_map import layers
from modular_gpt.mapping.setting_map import joined, key, layer_count, only, switch
from modular_gpt.mapping.tensor_map import FUSED, FUSED_PER_HEAD, IN_OUT, modules, tensors, transposed
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families.decoder_keys import HEADS, WINDOW_PATH, biases, dense, dropouts, layernorm
from modular_gpt.pretrained.families.tensor_names import QKV, attention
from modular_gpt.pretrained.family import Family

LAYER = "transformer.h.{layer}"
SCALE, TOPOLOGY, CLIP = "attention@mha.scale", "block.topology", "attention@mha.clip_qkv"
ORDER = {"reorder_and_upcast_attn": ANY}  # of two multiplications
BIASED, LEARNED = {"bias": True}, {"pos.name": "learned"}
START = (keys.SIZES, keys.LENGTH, keys.INIT, keys.PLAIN_HEADS, BIASED)
EPS = layernorm("layer_norm_epsilon")
MLP = dense("mlp", True, "n_inner", "activation_function", times=4)
FOUR_TIMES = dense("mlp", True, "", "", times=4)
DROPOUT = dropouts("resid_pdrop", "embd_pdrop", "attn_pdrop")
GPT = (START, EPS, MLP, biases(True), LEARNED, DROPOUT, only(add_cross_attention=False))
SCALED = switch("scale_attn_weights", SCALE, None, 1.0)
SEPARATE = "q_proj,k_proj,v_proj,out_proj"
HEAD = modules("lm_head = head")
ENDS = [*modules("transformer.{wte,ln_f} = {embedding,final_norm}"), *HEAD]
GPT2_ENDS = [*ENDS, *modules("transformer.wpe = positions.0.table")]
GPT2_NORMS = modules("{ln_1,ln_2} = {attention,ffn}_norm", LAYER)
C_FC = modules("mlp.{c_fc,c_proj} = ffn.{up,down}", LAYER)
CONV1D = [
    *modules(f"attn.c_attn = {QKV}", LAYER, transposed(FUSED)),
    *modules("{attn.c_proj,mlp.c_fc,mlp.c_proj} = {attention.out,ffn.up,ffn.down}", LAYER, IN_OUT),
]
GPT2_TENSORS = (GPT2_ENDS, GPT2_NORMS, CONV1D)
CAUSAL_MASK = (r"transformer\.h\.\d+\.attn\.(attention\.)?(bias|masked_bias)",)  # a table in older files


def _by_layer(settings: HFConfig) -> PlainDict:
    """GPT-2's scale of scores, divided by the number of the layer."""
    if not settings["scale_attn_by_inverse_layer_idx"]:
        return {}
    width = settings["hidden_size"] // settings["num_attention_heads"] if settings["scale_attn_weights"] else 1
    return {SCALE: PerLayer(width**-0.5 / (index + 1) for index in range(layer_count(settings)))}


BY_LAYER = Keys(_by_layer, lambda view: {"scale_attn_by_inverse_layer_idx": len(set(view.each(SCALE))) > 1})
GPT1_NAMES = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
GPT1_ACTIVATION = keys.activation_key("afn", "ffn@mlp.activation", names=GPT1_NAMES)
GPT1 = (START, EPS, FOUR_TIMES, GPT1_ACTIVATION, biases(True), LEARNED, DROPOUT, {"block.topology": "post"})
GPT1_TENSORS = (
    modules("transformer.{tokens_embed,positions_embed} = {embedding,positions.0.table}"),
    (*HEAD, *modules("{ln_1,ln_2} = {attention,ffn}_post_norm", LAYER)),
    CONV1D,
)
BIGCODE = (
    switch("multi_query", HEADS, 1, None),
    switch("multi_query", "attention.name", "mqa", "mha"),
    SCALED,
)
BIGCODE_TENSORS = (
    (*GPT2_ENDS, *GPT2_NORMS, *C_FC, *modules("attn.c_proj = attention.out", LAYER)),
    modules(f"c_attn = {QKV}", f"{LAYER}.attn", FUSED_PER_HEAD, "n_kv_heads"),
)
BIGCODE_HARMLESS = harmless("attention_softmax_in_fp32 scale_attention_softmax_in_fp32 num_key_value_heads")


def _local(settings: HFConfig) -> list[bool]:
    """GPT-Neo's layers with a window."""
    groups = settings["attention_types"] or [[["global", "local"], 12]]
    types = [name for names, count in groups for _ in range(count) for name in names]
    settings.ignore("attention_layers")  # the same, written out
    if len(types) != layer_count(settings) or not set(types) <= {"global", "local"}:
        raise CheckpointError(f"attention_types must be global or local for each layer, got {printable(repr(groups))}")
    return [name == "local" for name in types]


LOCAL = Flags(_local, lambda has: {"attention_types": [[["local" if one else "global" for one in has], 1]]})
NEO = (
    (START, EPS, biases(False, True), LEARNED),
    dense("mlp", True, "intermediate_size", "activation_function", times=4),
    layers(LOCAL, f"window_size = {WINDOW_PATH}", mark=WINDOW_PATH),
    dropouts("resid_dropout", "embed_dropout", "attention_dropout"),
    {SCALE: 1.0},
)
NEO_ATTENTION = attention(f"{LAYER}.attn.attention", SEPARATE)
NEO_TENSORS = (GPT2_ENDS, GPT2_NORMS, NEO_ATTENTION, C_FC)
OPT_LAYER = "model.decoder.layers.{layer}"
# a table whose first two rows belong to no position
AFTER_TWO = Transform(lambda hf, shapes, count: [hf[2:]], lambda tensors, count: F.pad(tensors[0], (0, 0, 2, 0)))
OPT_TENSORS = [
    *modules("{embed_tokens,final_layer_norm} = {embedding,final_norm}", "model.decoder"),
    *modules("project_{in,out} = embedding_{in,out}", "model.decoder"),
    *tensors("model.decoder.embed_positions.weight = positions.0.table.weight", "", AFTER_TWO),
    *HEAD,
    *modules("{self_attn_layer_norm,final_layer_norm,fc1,fc2} = {attention_norm,ffn_norm,ffn.up,ffn.down}", OPT_LAYER),
    *modules("{self_attn,final}_layer_norm = {attention,ffn}_post_norm", OPT_LAYER),
    *attention(f"{OPT_LAYER}.self_attn", SEPARATE),
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
    (keys.SIZES, keys.LENGTH, keys.PLAIN_HEADS, BIASED, layernorm(1e-5), biases(True), LEARNED, "init_std"),
    (dense("mlp", True, "ffn_dim", "activation_function"), Keys(_read_opt, _write_opt)),
    (dropouts("dropout", "dropout", "attention_dropout"), only(enable_bias=True, layer_norm_elementwise_affine=True)),
)
H_TO_4H = modules("mlp.dense_{h_to_4h,4h_to_h} = ffn.{up,down}", LAYER)
BLOOM_QKV = modules(f"query_key_value = {QKV}", f"{LAYER}.self_attention", FUSED_PER_HEAD, "n_kv_heads")
BLOOM_ENDS = [*modules("transformer.{word_embeddings,ln_f} = {embedding,final_norm}"), *HEAD]
BLOOM_TENSORS = [
    *modules("transformer.word_embeddings_layernorm = embedding_norm"),
    *modules("{input,post_attention}_layernorm = {attention,ffn}_norm", LAYER),
    *modules("self_attention.dense = attention.out", LAYER),
]
BLOOM_HARMLESS = harmless(
    "slow_but_exact n_inner offset_alibi skip_bias_add skip_bias_add_qkv masked_softmax_fusion bias_dropout_fusion"
    " attention_softmax_in_fp32"
)
BLOOM = (
    (keys.SIZES, keys.INIT, keys.PLAIN_HEADS, BIASED, EPS, FOUR_TIMES, biases(True)),
    {"pos.name": "alibi", "embed_norm": True, "ffn.activation": "gelu_tanh"},
    # ALiBi has no limit: transformers does not read the length that a model was trained with
    key("seq_length", "context_length", null=2048),
    switch("apply_residual_connection_post_layernorm", TOPOLOGY, "norm_residual", "pre"),
    dropouts("hidden_dropout", None, "attention_dropout"),
)
# transformers computes with a largest bias of 8, whatever the file has; the authors' own code reads it
MPT_FIXED = {"attn_config.alibi": True, "attn_config.alibi_bias_max": 8, "attn_config.prefix_lm": False}
MPT = (
    (keys.SIZES, "max_seq_len = context_length", keys.INIT, keys.PLAIN_HEADS),
    (layernorm("layer_norm_epsilon", bias=False), dense("mlp", False, "", "", times=4), biases(False)),
    {"ffn.activation": "gelu", "pos.name": "alibi", "pos.max_bias": 8.0},
    Keys(joined((only(**MPT_FIXED, **{"attn_config.qk_ln": False}), dropouts("attn_config.attn_pdrop"))).from_hf),
    (f"attn_config.softmax_scale = {SCALE}", key("attn_config.clip_qkv", CLIP, lambda clip: clip or None)),
    only(no_bias=True, logit_scale=None),
)
MPT_HARMLESS = harmless(
    "expansion_ratio resid_pdrop emb_pdrop learned_pos_emb init_config embedding_fraction norm_type verbose"
    " attn_config.attn_impl",
    **{"attn_config.attn_type": "multihead_attention", "attn_config.attn_uses_sequence_id": False},
)
MPT_DEFAULTS = {"attn_config.attn_pdrop": 0.0, "attn_config.clip_qkv": None, "attn_config.softmax_scale": None}
BLOCK = "transformer.blocks.{layer}"
MPT_TENSORS = [
    *modules("transformer.{wte,norm_f} = {embedding,final_norm}"),
    *HEAD,
    *modules(f"Wqkv = {QKV}", f"{BLOCK}.attn", FUSED),
    *modules("{norm_1,norm_2,attn.out_proj} = {attention_norm,ffn_norm,attention.out}", BLOCK),
    *modules("ffn.{up,down}_proj = ffn.{up,down}", BLOCK),
]

FAMILIES = [
    Family("gpt2", (GPT, SCALED, BY_LAYER), GPT2_TENSORS, harmless=ORDER, ignored=CAUSAL_MASK),
    Family("openai-gpt", GPT1, GPT1_TENSORS, ignored=CAUSAL_MASK),
    Family("gpt_bigcode", (GPT, BIGCODE), BIGCODE_TENSORS, harmless=BIGCODE_HARMLESS, ignored=CAUSAL_MASK),
    Family("gpt_neo", NEO, NEO_TENSORS, ignored=CAUSAL_MASK),
    Family("opt", OPT, (OPT_TENSORS,)),
    Family(
        "bloom",
        BLOOM,
        (BLOOM_ENDS, BLOOM_TENSORS, H_TO_4H, BLOOM_QKV),
        harmless=BLOOM_HARMLESS,
        defaults={"seq_length": None},
        synonyms={"n_embed": "hidden_size"},
    ),
    Family("mpt", MPT, (MPT_TENSORS,), harmless=MPT_HARMLESS, defaults=MPT_DEFAULTS),
]
