"""Families whose attention and feed-forward network stand side by side, by default or by a setting.

GPT-J: https://github.com/kingoflolz/mesh-transformer-jax, GPT-NeoX: https://arxiv.org/abs/2204.06745,
Falcon: https://arxiv.org/abs/2311.16867, Phi: https://arxiv.org/abs/2309.05463
"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.decoder_keys import (
    INIT,
    LENGTH,
    PLAIN_HEADS,
    SIZES,
    SLIDING,
    biases,
    dense,
    dropouts,
    every,
    layer_types,
    layernorm,
    qk_norm,
    windows,
)
from modular_gpt.pretrained.families.gpt import (
    BIASED,
    BLOOM_ENDS,
    BLOOM_QKV,
    CAUSAL_MASK,
    DROPOUT,
    EPS,
    GPT2_ENDS,
    MLP,
)
from modular_gpt.pretrained.families.gpt import LAYER as GPT_LAYER
from modular_gpt.pretrained.families.gpt import START as GPT
from modular_gpt.pretrained.families.llama import START
from modular_gpt.pretrained.families.rope_config import Layers, rope
from modular_gpt.pretrained.families.tensor_names import (
    HEAD_BIAS,
    LAYER,
    LLAMA,
    OURS,
    QKV,
    attention,
    in_layer,
)
from modular_gpt.pretrained.family import Family, must_be
from modular_gpt.pretrained.setting_map import Keys, ModelView, always, key
from modular_gpt.pretrained.tensor_map import FUSED_PER_HEAD, TensorMapping, affine

PARALLEL = always({"block.topology": "parallel"})
HEAD = always({"head_bias": True})


def _read_rotary_dim(settings: HFConfig) -> PlainDict:
    rotary_dim = settings["rotary_dim"]
    if rotary_dim is None:  # transformers would rotate by a table as wide as the model
        raise KeyError("rotary_dim")
    return {"pos.name": "rope", "pos@rope.rotary_dim": rotary_dim, "pos@rope.layout": "interleaved"}


ROTARY_DIM = Keys(_read_rotary_dim, lambda view: {"rotary_dim": view["pos@rope.rotary_dim"]})
NEOX_TOPOLOGY = key(
    "use_parallel_residual",
    "block.topology",
    lambda parallel: "parallel_two_norms" if parallel else "pre",
    lambda topology: topology != "pre",
)
NEOX_LAYER = "gpt_neox.layers.{layer}"
NEOX_ENDS = [
    *affine("gpt_neox.embed_in", "embedding"),
    *affine("gpt_neox.final_layer_norm", "final_norm"),
    *affine("embed_out", "head"),
]
NEOX_TENSORS = [
    *affine(f"{NEOX_LAYER}.attention.query_key_value", *QKV, weight=FUSED_PER_HEAD, bias=FUSED_PER_HEAD),
    *in_layer(
        NEOX_LAYER,
        attention_norm="input_layernorm",
        ffn_norm="post_attention_layernorm",
        attention__out="attention.dense",
        ffn__up="mlp.dense_h_to_4h",
        ffn__down="mlp.dense_4h_to_h",
    ),
]
NEOX_MASK = r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)"


def _read_falcon(settings: HFConfig) -> PlainDict:
    new, n_heads = settings["new_decoder_architecture"], settings["num_attention_heads"]
    if new:
        must_be(settings, parallel_attn=True)
        norms = settings["num_ln_in_parallel_attn"]
        topology = "parallel_two_norms" if norms in (2, None) else "parallel"
        n_kv_heads = settings["num_kv_heads"] or n_heads
        settings.ignore("multi_query")
    else:
        topology = "parallel" if settings["parallel_attn"] else "pre"
        n_kv_heads = 1 if settings["multi_query"] else n_heads
        settings.ignore("num_kv_heads", "num_ln_in_parallel_attn")
    ours: PlainDict = {"block.topology": topology, "attention@mha.n_kv_heads": n_kv_heads}
    ours["attention.name"] = "mha" if n_kv_heads == n_heads else "gqa"
    if settings["alibi"]:
        scale = (settings["hidden_size"] // n_heads) ** -0.5
        ours |= {"pos.name": "alibi", "pos@alibi.scale": scale, "pos@alibi.rounded": True}
    return ours


def _write_falcon(view: ModelView) -> PlainDict:
    topology, n_kv_heads = view["block.topology"], view["attention@mha.n_kv_heads"]
    new = topology == "parallel_two_norms" or n_kv_heads not in (1, view["n_heads"])
    keys = {"alibi": bool(view["pos@alibi.rounded"]), "new_decoder_architecture": new}
    if new:
        norms = 2 if topology == "parallel_two_norms" else 1
        return {
            **keys,
            "parallel_attn": topology != "pre",
            "num_kv_heads": n_kv_heads,
            "num_ln_in_parallel_attn": norms,
        }
    return {**keys, "parallel_attn": topology == "parallel", "multi_query": n_kv_heads == 1}


def two_norms(config: GPTConfig) -> bool:
    """Whether attention and feed-forward network have a norm each, side by side."""
    return config.topology == "parallel_two_norms"


FALCON_NORMS = [
    *(
        mapping._replace(when=lambda config: not two_norms(config))
        for mapping in in_layer(GPT_LAYER, attention_norm="input_layernorm", ffn_norm="post_attention_layernorm")
    ),
    *(mapping._replace(when=two_norms) for mapping in in_layer(GPT_LAYER, attention_norm="ln_attn", ffn_norm="ln_mlp")),
]
FALCON_LAYER = in_layer(
    GPT_LAYER, attention__out="self_attention.dense", ffn__up="mlp.dense_h_to_4h", ffn__down="mlp.dense_4h_to_h"
)
PHI_ENDS = [
    *affine("model.embed_tokens", "embedding"),
    *affine("model.final_layernorm", "final_norm"),
    *affine("lm_head", "head"),
    *HEAD_BIAS,
]
PHI_TENSORS = [
    *in_layer(LAYER, attention_norm="input_layernorm", ffn__up="mlp.fc1", ffn__down="mlp.fc2"),
    *attention(f"{LAYER}.self_attn", "q_proj", "k_proj", "v_proj", "dense"),
    *in_layer(f"{LAYER}.self_attn", attention__query_norm="q_layernorm", attention__key_norm="k_layernorm"),
]
PHI_NORM = qk_norm("head", "layernorm", "layer_norm_eps", switch="qk_layernorm", bias=True)

COHERE_NORM = layernorm("layer_norm_eps", bias=False)
COHERE = (START, COHERE_NORM, dense(), biases(), key("logit_scale", "logit_scale", float), PARALLEL)
COHERE_QK = [
    TensorMapping(f"{LAYER}.self_attn.{name}_norm.weight", (f"{OURS}.attention.{ours}_norm.weight",))
    for name, ours in (("q", "query"), ("k", "key"))
]


def _with_window(settings: HFConfig) -> list[bool]:
    """Cohere 2 has rotary positions in layers with a window alone."""
    types = layer_types(settings, every(4))
    return [name == SLIDING for name in types]


STABLELM_TOPOLOGY = key(
    "use_parallel_residual",
    "block.topology",
    lambda parallel: "parallel" if parallel else "pre",
    lambda topology: topology != "pre",
)
STABLELM_QK = [
    TensorMapping(
        f"{LAYER}.self_attn.{name}_layernorm.norms.{{expert}}.weight", (f"{OURS}.attention.{ours}_norm.weight",)
    )
    for name, ours in (("q", "query"), ("k", "key"))
]

FAMILIES = [
    Family(
        "gptj",
        (GPT, EPS, MLP, ROTARY_DIM, biases(False), PARALLEL, HEAD, DROPOUT),
        (
            GPT2_ENDS,
            HEAD_BIAS,
            in_layer(GPT_LAYER, attention_norm="ln_1", ffn__up="mlp.fc_in", ffn__down="mlp.fc_out"),
            attention(f"{GPT_LAYER}.attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        ),
        prefix="transformer.",
        ignored=(CAUSAL_MASK,),
    ),
    Family(
        "gpt_neox",
        (SIZES, LENGTH, INIT, PLAIN_HEADS, BIASED, layernorm("layer_norm_eps"), dense("mlp", True), rope(partial=True),
         biases(), NEOX_TOPOLOGY, dropouts("hidden_dropout", "hidden_dropout", "attention_dropout")),
        (NEOX_ENDS, NEOX_TENSORS),
        prefix="gpt_neox.",
        ignored=(NEOX_MASK,),
        synonyms={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    ),
    Family(
        "falcon",
        (SIZES, LENGTH, INIT, PLAIN_HEADS, EPS, dense("mlp", "bias", "ffn_hidden_size", "activation", times=4), rope(),
         biases("bias"), Keys(_read_falcon, _write_falcon), dropouts("hidden_dropout", None, "attention_dropout")),
        (BLOOM_ENDS, FALCON_NORMS, FALCON_LAYER, BLOOM_QKV),
        prefix="transformer.",
        synonyms={"n_embed": "hidden_size"},
    ),
    Family(
        "phi",
        (START, layernorm("layer_norm_eps"), dense("mlp", True), rope(partial=True), biases(True), PHI_NORM, PARALLEL,
         HEAD, dropouts("resid_pdrop", "embd_pdrop", "attention_dropout")),
        (PHI_ENDS, PHI_TENSORS),
    ),
    Family(
        "cohere",
        (COHERE, rope(layout="interleaved"), qk_norm("per_head", "layernorm", "layer_norm_eps", switch="use_qk_norm")),
        (*LLAMA, COHERE_QK),
    ),
    Family("cohere2", (COHERE, rope(layout="interleaved", where=Layers(_with_window)), windows(every(4))), LLAMA),
    Family(
        "stablelm",
        (START, layernorm("layer_norm_eps"), dense(), rope(partial=True), biases("use_qkv_bias", False),
         STABLELM_TOPOLOGY, qk_norm("per_head", "layernorm", "layer_norm_eps", switch="qk_layernorm"),
         dropouts("hidden_dropout", None, "attention_dropout")),
        (*LLAMA, STABLELM_QK),
    ),
]  # fmt: skip
