"""Gemma 2: https://arxiv.org/abs/2408.00118"""

import math

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families.llama_like import ATTENTION, DEFAULTS, ENDS, GATED, LAYER, decoder, windows
from modular_gpt.pretrained.family import Family, must_be
from modular_gpt.pretrained.tensor_map import TensorMapping


def from_hf(settings: HFConfig) -> PlainDict:
    must_be(settings, use_bidirectional_attention=None)
    ours = decoder(settings.with_values(hidden_act=settings["hidden_activation"]))
    n_layers = settings["num_hidden_layers"]
    types = settings["layer_types"] or [("sliding_attention", "full_attention")[i % 2] for i in range(n_layers)]
    window, ours["layers"] = windows(types, settings["sliding_window"])
    ours["attention"] |= {
        "window": window,
        "softcap": settings["attn_logit_softcapping"],
        "scale": settings["query_pre_attn_scalar"] ** -0.5,
        "qkv_bias": settings["attention_bias"],
        "out_bias": settings["attention_bias"],
    }
    ours["norm"]["weight_offset"] = True
    return ours | {
        "topology": "sandwich",
        "embed_scale": math.sqrt(settings["hidden_size"]),
        "logit_softcap": settings["final_logit_softcapping"],
    }


FAMILY = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    rules=(
        *ENDS,
        *ATTENTION,
        *GATED,
        TensorMapping(f"{LAYER}.input_layernorm.weight", ("blocks.{layer}.attention_norm.weight",)),
        TensorMapping(f"{LAYER}.post_attention_layernorm.weight", ("blocks.{layer}.attention_post_norm.weight",)),
        TensorMapping(f"{LAYER}.pre_feedforward_layernorm.weight", ("blocks.{layer}.ffn_norm.weight",)),
        TensorMapping(f"{LAYER}.post_feedforward_layernorm.weight", ("blocks.{layer}.ffn_post_norm.weight",)),
    ),
    from_hf=from_hf,
    harmless={"cache_implementation": ANY},
    defaults={
        **DEFAULTS,
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "use_bidirectional_attention": None,
        "tie_word_embeddings": True,
    },
)
