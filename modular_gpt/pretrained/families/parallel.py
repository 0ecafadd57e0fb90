"""Families with parallel attention and feed-forward network, by default or by a setting.

GPT-J: https://github.com/kingoflolz/mesh-transformer-jax, GPT-NeoX: https://arxiv.org/abs/2204.06745,
Falcon: https://arxiv.org/abs/2311.16867, Phi: https://arxiv.org/abs/2309.05463
"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.mapping import HFConfig, Keys, ModelView, modules, tensors
from modular_gpt.mapping.setting_map import computed, enabled_by, needed, only, switch
from modular_gpt.mapping.tensor_map import FUSED_PER_HEAD, when
from modular_gpt.pretrained.families import decoder_keys as keys
from modular_gpt.pretrained.families import gpt
from modular_gpt.pretrained.families import tensor_names as names
from modular_gpt.pretrained.families.decoder_keys import HEADS, START, biases, dense, dropouts, layernorm, qk_norm
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import ATTN, LAYER, LLAMA, QKV, attention
from modular_gpt.pretrained.family import Family

TOPOLOGY, TWO_NORMS = "block.topology", "parallel_two_norms"
PARALLEL, HEAD = {"block.topology": "parallel"}, {"head_bias": True}
# without rotary_dim, transformers would rotate by a table as wide as the model
ROTARY_DIM = ({"pos.name": "rope", "pos@rope.layout": "interleaved"}, needed("rotary_dim", "pos@rope.rotary_dim"))
GPTJ = (gpt.START, gpt.EPS, gpt.MLP, ROTARY_DIM, biases(False), PARALLEL, HEAD, gpt.DROPOUT)
GPTJ_TENSORS = [
    *gpt.ENDS,
    *names.HEAD_BIAS,
    *modules("{ln_1,mlp.fc_in,mlp.fc_out} = {attention_norm,ffn.up,ffn.down}", gpt.LAYER),
    *attention(f"{gpt.LAYER}.attn", gpt.SEPARATE),
]
NEOX = (
    (keys.SIZES, keys.LENGTH, keys.INIT, keys.PLAIN_HEADS, gpt.BIASED, layernorm("layer_norm_eps"), dense("mlp", True)),
    (rope(partial=True), biases(), switch("use_parallel_residual", TOPOLOGY, TWO_NORMS, "pre")),
    dropouts("hidden_dropout", "hidden_dropout", "attention_dropout"),
)
NEOX_LAYER = "gpt_neox.layers.{layer}"
NEOX_TENSORS = [
    *modules("{gpt_neox.embed_in,gpt_neox.final_layer_norm,embed_out} = {embedding,final_norm,head}"),
    *modules(f"query_key_value = {QKV}", f"{NEOX_LAYER}.attention", FUSED_PER_HEAD),
    *modules("{input,post_attention}_layernorm = {attention,ffn}_norm", NEOX_LAYER),
    *modules("attention.dense = attention.out", NEOX_LAYER),
    *modules("mlp.dense_{h_to_4h,4h_to_h} = ffn.{up,down}", NEOX_LAYER),
]


def _read_falcon(settings: HFConfig) -> PlainDict:
    new, n_heads = settings["new_decoder_architecture"], settings["num_attention_heads"]
    norms, groups, single = (settings[name] for name in ("num_ln_in_parallel_attn", "num_kv_heads", "multi_query"))
    if new:
        only(parallel_attn=True).from_hf(settings)
    n_kv_heads = (groups or n_heads) if new else 1 if single else n_heads
    topology = TWO_NORMS if new and norms in (2, None) else "parallel" if settings["parallel_attn"] else "pre"
    return {TOPOLOGY: topology, HEADS: n_kv_heads, "attention.name": keys.grouped(n_kv_heads, n_heads)}


def _write_falcon(view: ModelView) -> PlainDict:
    topology, n_kv_heads = view[TOPOLOGY], view[HEADS]
    if topology != TWO_NORMS and n_kv_heads in (1, view["n_heads"]):
        single, parallel = n_kv_heads == 1, topology == "parallel"
        return {"new_decoder_architecture": False, "parallel_attn": parallel, "multi_query": single}
    norms = {"num_ln_in_parallel_attn": 2 if topology == TWO_NORMS else 1}
    return {"new_decoder_architecture": True, **norms, "parallel_attn": topology != "pre", "num_kv_heads": n_kv_heads}


ALIBI = (
    {"pos.name": "alibi", "pos@alibi.rounded": True},
    computed("pos@alibi.scale", lambda settings: (settings["hidden_size"] // settings["num_attention_heads"]) ** -0.5),
)
FALCON = (
    (keys.SIZES, keys.LENGTH, keys.INIT, keys.PLAIN_HEADS, gpt.EPS, rope(), biases("bias")),
    dense("mlp", "bias", "ffn_hidden_size", "activation", times=4),
    (Keys(_read_falcon, _write_falcon), enabled_by("alibi", "pos@alibi.rounded", ALIBI)),
    dropouts("hidden_dropout", None, "attention_dropout"),
)
FALCON_TENSORS = [
    *(*gpt.BLOOM_ENDS, *gpt.H_TO_4H, *gpt.BLOOM_QKV),
    *when(
        lambda config: config.topology != TWO_NORMS,
        modules("{input,post_attention}_layernorm = {attention,ffn}_norm", gpt.LAYER),
    ),
    *when(lambda config: config.topology == TWO_NORMS, modules("{ln_attn,ln_mlp} = {attention,ffn}_norm", gpt.LAYER)),
    *modules("self_attention.dense = attention.out", gpt.LAYER),
]
PHI = (
    (START, layernorm("layer_norm_eps"), dense("mlp", True), rope(partial=True), biases(True), PARALLEL, HEAD),
    enabled_by("qk_layernorm", keys.QK_NORM, qk_norm("head", "layernorm", "layer_norm_eps", bias=True)),
    dropouts("resid_pdrop", "embd_pdrop", "attention_dropout"),
)
PHI_TENSORS = [
    *modules("{model.embed_tokens,model.final_layernorm,lm_head} = {embedding,final_norm,head}"),
    *names.HEAD_BIAS,
    *modules("{input_layernorm,mlp.fc1,mlp.fc2} = {attention_norm,ffn.up,ffn.down}", LAYER),
    *attention(ATTN, "q_proj,k_proj,v_proj,dense"),
    *modules("{q,k}_layernorm = attention.{query,key}_norm", ATTN),
]
COHERE = (
    (START, layernorm("layer_norm_eps", bias=False), dense(), biases(), "logit_scale", PARALLEL),
    rope(layout="interleaved"),
)
NORM_PER_HEAD = qk_norm("per_head", "layernorm", "layer_norm_eps")
COHERE_QK = tensors("{q,k}_norm.weight = attention.{query,key}_norm.weight", ATTN)
# rotary positions in layers with a window alone
COHERE2 = (keys.windows(keys.every(4)), keys.by_type(keys.every(4), (), {"pos.name": "none"}))
STABLELM = (
    (START, layernorm("layer_norm_eps"), dense(), rope(partial=True), biases("use_qkv_bias", False)),
    switch("use_parallel_residual", TOPOLOGY, "parallel", "pre"),
    enabled_by("qk_layernorm", keys.QK_NORM, NORM_PER_HEAD),
    dropouts("hidden_dropout", None, "attention_dropout"),
)
STABLELM_QK = tensors("{q,k}_layernorm.norms.{expert}.weight = attention.{query,key}_norm.weight", ATTN)

FAMILIES = [
    Family("gptj", GPTJ, (GPTJ_TENSORS,), ignored=gpt.CAUSAL_MASK),
    Family(
        "gpt_neox",
        NEOX,
        (NEOX_TENSORS,),
        ignored=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)",),
        synonyms={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    ),
    Family("falcon", FALCON, (FALCON_TENSORS,), synonyms={"n_embed": "hidden_size"}),
    Family("phi", PHI, (PHI_TENSORS,)),
    Family("cohere", (COHERE, enabled_by("use_qk_norm", keys.QK_NORM, NORM_PER_HEAD)), (*LLAMA, COHERE_QK)),
    Family("cohere2", (COHERE, COHERE2), LLAMA),
    Family("stablelm", STABLELM, (*LLAMA, STABLELM_QK)),
]
