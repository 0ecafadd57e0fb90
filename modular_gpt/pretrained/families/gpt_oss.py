"""GPT-OSS: https://arxiv.org/abs/2508.10925"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.llama_like import ATTENTION, DEFAULTS, ENDS, LAYER, NORMS, decoder, windows
from modular_gpt.pretrained.family import Family, must_be
from modular_gpt.pretrained.tensor_map import COPY, INTERLEAVED, TensorMapping, affine, transposed

_EXPERTS = f"{LAYER}.mlp.experts"

_ROPE: PlainDict = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def from_hf(settings: HFConfig) -> PlainDict:
    must_be(settings, swiglu_alpha=1.702, swiglu_limit=7.0)
    if settings.get("rope_parameters") is None:  # absent or null
        settings = settings.with_values(rope_parameters=_ROPE)
    ours = decoder(settings)
    n_layers = settings["num_hidden_layers"]
    types = settings["layer_types"] or [("sliding_attention", "full_attention")[i % 2] for i in range(n_layers)]
    window, ours["layers"] = windows(types, settings["sliding_window"])
    bias = settings["attention_bias"]
    ours["attention"] |= {"window": window, "sinks": True, "qkv_bias": bias, "out_bias": bias}
    ours["ffn"] = {
        "name": "moe",
        "n_experts": settings["num_local_experts"],
        "top_k": settings["num_experts_per_tok"],
        "hidden": settings["intermediate_size"],
        "activation": "clamped_swish",
        "bias": True,
        "router_bias": True,
        "balance_weight": settings["router_aux_loss_coef"] * settings["num_experts_per_tok"] / n_layers,
        "z_weight": 0.0,
    }
    return ours


FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        TensorMapping(f"{LAYER}.self_attn.sinks", ("blocks.{layer}.attention.sinks",)),
        *affine(f"{LAYER}.mlp.router", "blocks.{layer}.ffn.router"),
        TensorMapping(
            f"{_EXPERTS}.gate_up_proj",
            ("blocks.{layer}.ffn.gate", "blocks.{layer}.ffn.up"),
            transposed(INTERLEAVED),
        ),
        TensorMapping(
            f"{_EXPERTS}.gate_up_proj_bias",
            ("blocks.{layer}.ffn.gate_bias", "blocks.{layer}.ffn.up_bias"),
            INTERLEAVED,
        ),
        TensorMapping(f"{_EXPERTS}.down_proj", ("blocks.{layer}.ffn.down",), transposed(COPY)),
        TensorMapping(f"{_EXPERTS}.down_proj_bias", ("blocks.{layer}.ffn.down_bias",)),
    ),
    from_hf=from_hf,
    synonyms={"num_experts": "num_local_experts"},
    harmless={"experts_per_token": ANY, "initial_context_length": ANY},
    defaults={
        **DEFAULTS,
        "vocab_size": 201088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "attention_bias": True,
        "sliding_window": 128,
        "layer_types": None,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "router_aux_loss_coef": 0.001,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    },
)
