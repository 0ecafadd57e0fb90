"""Llama-like families with a mixture of experts."""

from modular_gpt.pretrained.config_map import ANY
from modular_gpt.pretrained.families.decoder_keys import RMSNORM, WINDOW, biases, every, only, windows
from modular_gpt.pretrained.families.expert_keys import ALL_SPARSE, experts, moe, router_loss
from modular_gpt.pretrained.families.llama import START
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import ATTENTION, ENDS, IN_OUT, LAYER, OURS, PRE_NORMS, SINKS
from modular_gpt.pretrained.families.tensor_names import experts as expert_tensors
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import always
from modular_gpt.pretrained.tensor_map import INTERLEAVED, TensorMapping, affine, transposed

BASE = (START, RMSNORM, rope())
WHOLE = (ENDS, PRE_NORMS, ATTENTION)
W123 = expert_tensors(f"{LAYER}.block_sparse_moe", ("w1", "w3", "w2"))

STACKED = f"{LAYER}.mlp.experts"
GPT_OSS_EXPERTS = [
    *affine(f"{LAYER}.mlp.router", f"{OURS}.ffn.router"),
    TensorMapping(f"{STACKED}.gate_up_proj", (f"{OURS}.ffn.gate", f"{OURS}.ffn.up"), transposed(INTERLEAVED)),
    TensorMapping(f"{STACKED}.gate_up_proj_bias", (f"{OURS}.ffn.gate_bias", f"{OURS}.ffn.up_bias"), INTERLEAVED),
    TensorMapping(f"{STACKED}.down_proj", (f"{OURS}.ffn.down",), IN_OUT),
    TensorMapping(f"{STACKED}.down_proj_bias", (f"{OURS}.ffn.down_bias",)),
]
GPT_OSS = (
    moe(activation="clamped_swish", bias=True, router_bias=True),
    always({"attention@mha.sinks": True}),
    only(swiglu_alpha=1.702, swiglu_limit=7.0),
)

FAMILIES = [
    Family(
        "mixtral",
        (BASE, biases(False), WINDOW, experts("num_local_experts", "intermediate_size"), router_loss(), ALL_SPARSE),
        (*WHOLE, W123),
    ),
    Family(
        "gpt_oss",
        (BASE, biases(), windows(every(2)), experts("num_local_experts", "intermediate_size", act=""), router_loss(),
         GPT_OSS, ALL_SPARSE),
        (*WHOLE, SINKS, GPT_OSS_EXPERTS),
        harmless={"hidden_act": ("silu",), "experts_per_token": ANY, "initial_context_length": ANY},
    ),
]  # fmt: skip
