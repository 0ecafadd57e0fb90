"""Names of tensors that many families share, and the ways in which they store several of ours as one."""

import torch

from modular_gpt.pretrained.tensor_map import (
    COPY,
    FUSED,
    FUSED_PER_HEAD,
    TensorMapping,
    Transform,
    affine,
    transposed,
)

LAYER, OURS = "model.layers.{layer}", "blocks.{layer}"
QKV = tuple(f"{OURS}.attention.{name}" for name in ("query", "key", "value"))
ROUTER = f"{OURS}.ffn.router.weight"


def in_layer(prefix: str, **names: str) -> list[TensorMapping]:
    """Weights and biases of layers, theirs by ours: ``attention__query="q_proj"``; two underscores stand for a dot."""
    pairs = [(f"{prefix}.{name}", f"{OURS}.{ours.replace('__', '.')}") for ours, name in names.items()]
    return [mapping for hf_name, ours in pairs for mapping in affine(hf_name, ours)]


def where(ours: str, mappings: list[TensorMapping]) -> list[TensorMapping]:
    """The mappings for layers that have our tensor ``ours``."""
    return [mapping._replace(where=ours) for mapping in mappings]


def unless(ours: str, mappings: list[TensorMapping]) -> list[TensorMapping]:
    """The mappings for layers that lack our tensor ``ours``, unless they name another one."""
    return [mapping if mapping.unless else mapping._replace(unless=ours) for mapping in mappings]


def attention(prefix: str, *names: str) -> list[TensorMapping]:
    """Separate projections of queries, keys, values and output."""
    return in_layer(prefix, **dict(zip(ATTENTION_NAMES, names, strict=True)))


ATTENTION_NAMES = ("attention__query", "attention__key", "attention__value", "attention__out")
ENDS = [*affine("model.embed_tokens", "embedding"), *affine("model.norm", "final_norm"), *affine("lm_head", "head")]
HEAD_BIAS = [TensorMapping("lm_head.bias", ("head_bias",))]
PRE_NORMS = in_layer(LAYER, attention_norm="input_layernorm", ffn_norm="post_attention_layernorm")
POST_NORMS = in_layer(LAYER, attention_post_norm="post_attention_layernorm", ffn_post_norm="post_feedforward_layernorm")
SANDWICH_NORMS = [*POST_NORMS, *in_layer(LAYER, attention_norm="input_layernorm", ffn_norm="pre_feedforward_layernorm")]
ATTENTION = attention(f"{LAYER}.self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
QK_NORM = in_layer(f"{LAYER}.self_attn", attention__query_norm="q_norm", attention__key_norm="k_norm")
SINKS = [TensorMapping(f"{LAYER}.self_attn.sinks", (f"{OURS}.attention.sinks",))]
GATED = in_layer(f"{LAYER}.mlp", ffn__gate="gate_proj", ffn__up="up_proj", ffn__down="down_proj")
UP_DOWN = in_layer(f"{LAYER}.mlp", ffn__up="up_proj", ffn__down="down_proj")
LLAMA = (ENDS, PRE_NORMS, ATTENTION, GATED)
FUSED_QKV = [
    *affine(f"{LAYER}.self_attn.qkv_proj", *QKV, weight=FUSED, bias=FUSED),
    *in_layer(f"{LAYER}.self_attn", attention__out="o_proj"),
]
FUSED_GATED = [
    *affine(f"{LAYER}.mlp.gate_up_proj", f"{OURS}.ffn.gate", f"{OURS}.ffn.up", weight=FUSED, bias=FUSED),
    *in_layer(f"{LAYER}.mlp", ffn__down="down_proj"),
]
# stacked experts with the rows of our tensors after each other
STACKED_ROWS = Transform(
    lambda hf, shapes, count: hf.split([shape[1] for shape in shapes], dim=1),
    lambda ours, count: torch.cat(list(ours), dim=1),
)
IN_OUT = transposed(COPY)  # matrices that the checkpoint stores as (in, out)


def experts(
    prefix: str = f"{LAYER}.mlp",
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    router: str = "gate",
    select_bias: str = "gate.e_score_correction_bias",
    shared: str = "shared_experts",
) -> list[TensorMapping]:
    """A router, a tensor for each expert, and shared experts, if any; ``names``: of gate, up and down in an expert."""
    matrices = zip(("gate", "up", "down"), names, strict=True)
    return [
        TensorMapping(f"{prefix}.{router}.weight", (ROUTER,)),
        TensorMapping(f"{prefix}.{select_bias}", (f"{OURS}.ffn.select_bias",)),
        *(
            TensorMapping(f"{prefix}.experts.{{expert}}.{name}.weight", (f"{OURS}.ffn.{ours}",), where=ROUTER)
            for ours, name in matrices
        ),
        *(shared_expert(f"{prefix}.{shared}") if shared else []),
    ]


def shared_expert(prefix: str) -> list[TensorMapping]:
    """A gated network for all tokens."""
    return in_layer(prefix, ffn__shared__gate="gate_proj", ffn__shared__up="up_proj", ffn__shared__down="down_proj")


def latent_attention(prefix: str = f"{LAYER}.self_attn") -> list[TensorMapping]:
    """Multi-head latent attention, with or without a latent of queries."""
    query, down, latent = (f"{OURS}.attention.{name}.weight" for name in ("query", "query_down", "latent"))
    return [
        TensorMapping(f"{prefix}.q_proj.weight", (query,), where=latent, unless=down),
        TensorMapping(f"{prefix}.q_b_proj.weight", (query,), where=down),
        *in_layer(
            prefix,
            attention__query_down="q_a_proj",
            attention__query_norm="q_a_layernorm",
            attention__latent="kv_a_proj_with_mqa",
            attention__latent_norm="kv_a_layernorm",
            attention__out="o_proj",
        ),
        TensorMapping(
            f"{prefix}.kv_b_proj.weight",
            (f"{OURS}.attention.key.weight", f"{OURS}.attention.value.weight"),
            FUSED_PER_HEAD,
        ),
    ]
