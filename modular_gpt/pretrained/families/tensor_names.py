"""Names of tensors that many families share."""

from modular_gpt.mapping.tensor_map import FUSED, FUSED_PER_HEAD, Tensors, modules, tensors, unless, where

LAYER = "model.layers.{layer}"
ATTN, MLP = f"{LAYER}.self_attn", f"{LAYER}.mlp"
QKV = "attention.query + attention.key + attention.value"
ROUTER = "ffn.router.weight"


def attention(prefix: str, names: str = "q_proj,k_proj,v_proj,o_proj") -> Tensors:
    """Map separate projections of queries, keys, values and output; ``names``: their names in the checkpoint."""
    return modules(f"{{{names}}} = attention.{{query,key,value,out}}", prefix)


ENDS = modules("{model.embed_tokens,model.norm,lm_head} = {embedding,final_norm,head}")
HEAD_BIAS = tensors("lm_head.bias = head_bias")
PRE_NORMS = modules("{input,post_attention}_layernorm = {attention,ffn}_norm", LAYER)
POST_NORMS = modules("post_{attention,feedforward}_layernorm = {attention,ffn}_post_norm", LAYER)
SANDWICH_NORMS = [*POST_NORMS, *modules("{input,pre_feedforward}_layernorm = {attention,ffn}_norm", LAYER)]
ATTENTION = attention(ATTN)
QK_NORM = modules("{q,k}_norm = attention.{query,key}_norm", ATTN)
SINKS = tensors("sinks = attention.sinks", ATTN)
GATED = modules("{gate,up,down}_proj = ffn.{gate,up,down}", MLP)
UP_DOWN = modules("{up,down}_proj = ffn.{up,down}", MLP)
LLAMA = (ENDS, PRE_NORMS, ATTENTION, GATED)
WHOLE = (ENDS, PRE_NORMS, ATTENTION)
FUSED_QKV = [*modules(f"qkv_proj = {QKV}", ATTN, FUSED), *modules("o_proj = attention.out", ATTN)]
FUSED_GATED = [*modules("gate_up_proj = ffn.gate + ffn.up", MLP, FUSED), *modules("down_proj = ffn.down", MLP)]


def experts(
    prefix: str = MLP,
    matrices: str = "gate_proj,up_proj,down_proj",
    shared: str = "shared_experts",
    router: str = "gate",
    select_bias: str = "gate.e_score_correction_bias",
) -> Tensors:
    """A router, a tensor for each matrix of each expert, and shared experts; an empty name: there is none."""
    each = f"experts.{{expert}}.{{{matrices}}}.weight = ffn.{{gate,up,down}}"
    return [
        *tensors(f"{router}.weight = {ROUTER}", prefix),
        *(tensors(f"{select_bias} = ffn.select_bias", prefix) if select_bias else []),
        *(where(ROUTER, tensors(each, prefix)) if matrices else []),
        *(shared_expert(f"{prefix}.{shared}") if shared else []),
    ]


def shared_expert(prefix: str) -> Tensors:
    """A gated network for all tokens."""
    return modules("{gate,up,down}_proj = ffn.shared.{gate,up,down}", prefix)


# with a shared expert that has a gate
GATED_EXPERTS = [
    *experts(shared="shared_expert"),
    *tensors("shared_expert_gate.weight = ffn.shared_gate.weight", MLP),
]
_LATENT, _DOWN = "attention.latent.weight", "attention.query_down.weight"
# multi-head latent attention, with or without a latent of queries
LATENT_ATTENTION = [
    *where(_LATENT, unless(_DOWN, tensors("q_proj.weight = attention.query.weight", ATTN))),
    *where(_DOWN, tensors("q_b_proj.weight = attention.query.weight", ATTN)),
    *modules("q_a_{proj,layernorm} = attention.query_{down,norm}", ATTN),
    *modules("kv_a_{proj_with_mqa,layernorm} = attention.{latent,latent_norm}", ATTN),
    *modules("o_proj = attention.out", ATTN),
    *tensors("kv_b_proj.weight = attention.key.weight + attention.value.weight", ATTN, FUSED_PER_HEAD),
]
