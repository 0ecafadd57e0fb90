"""Settings of small models of ``transformers``, and weights with which a mistake changes the logits."""

from typing import Any

import torch
from torch import Tensor, nn

from modular_gpt.pretrained import FAMILIES

TOKENS = 24

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}
LATENT = {
    **SIZES,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "moe_intermediate_size": 20,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
GPT2 = {"vocab_size": 61, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4}
BLOOM = {"vocab_size": 61, "hidden_size": 32, "n_layer": 3, "n_head": 4}
MPT = {"vocab_size": 61, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 32}

LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
    "beta_fast": 2.0,
    "beta_slow": 0.2,
}
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}

# model type -> name of the case -> settings of the config
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2": {
        "plain": GPT2,
        "wide": {**GPT2, "vocab_size": 97, "n_embd": 60, "n_layer": 2, "n_head": 5, "n_inner": 37},
        "inverse layer scale": {**GPT2, "scale_attn_by_inverse_layer_idx": True},
        "no scale, untied": {**GPT2, "scale_attn_weights": False, "tie_word_embeddings": False},
        "erf gelu, eps": {**GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
        "relu": {**GPT2, "activation_function": "relu", "reorder_and_upcast_attn": True},
    },
    "llama": {
        "gqa": SIZES,
        "mha, tied": {**SIZES, "num_key_value_heads": 4, "tie_word_embeddings": True},
        "mqa, biases": {**SIZES, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        "own head_dim, gelu, eps": {**SIZES, "head_dim": 12, "hidden_act": "gelu", "rms_norm_eps": 1e-3},
        "rope linear": {**SIZES, "rope_parameters": LINEAR},
        "rope dynamic": {**SIZES, "max_position_embeddings": 16, "rope_parameters": DYNAMIC},
        "rope llama3": {**SIZES, "rope_parameters": LLAMA3},
        "rope yarn": {**SIZES, "rope_parameters": YARN},
        "rope yarn, untruncated": {**SIZES, "rope_parameters": {**YARN, "truncate": False, "attention_factor": 1.3}},
    },
    "mistral": {
        "window": {**SIZES, "sliding_window": 7},
        "no window": {**SIZES, "sliding_window": None, "num_key_value_heads": 1},
    },
    "qwen2": {
        "plain": SIZES,
        "last layers windowed": {**SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        "tied": {**SIZES, "tie_word_embeddings": True},
    },
    "qwen3": {
        "plain": {**SIZES, "head_dim": 12},
        "biases, yarn": {**SIZES, "head_dim": 8, "attention_bias": True, "rope_parameters": YARN},
        "alternating windows": {
            **SIZES,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    },
    "mixtral": {
        "top 2": {**SIZES, **EXPERTS, "head_dim": 8},
        "top 1": {**SIZES, **EXPERTS, "head_dim": 8, "num_experts_per_tok": 1},
        "top 4, window": {**SIZES, **EXPERTS, "head_dim": 8, "num_experts_per_tok": 4, "sliding_window": 6},
    },
    "deepseek_v2": {
        "query latent": LATENT,
        "no query latent": {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 0},
        "groups, scaled": {**LATENT, **GROUPS, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.5},
        "biases, yarn": {**LATENT, "attention_bias": True, "rope_parameters": MSCALE},
    },
    "deepseek_v3": {
        "groups": {**LATENT, **GROUPS},
        "no query latent": {**LATENT, **GROUPS, "q_lora_rank": None, "first_k_dense_replace": 2},
        "half layout, unnormalised": {**LATENT, **GROUPS, "rope_interleave": False, "norm_topk_prob": False},
        "one group, yarn": {**LATENT, "n_group": 1, "topk_group": 1, "rope_parameters": MSCALE},
    },
    "bloom": {
        "plain": BLOOM,
        "six heads": {**BLOOM, "hidden_size": 48, "n_head": 6, "layer_norm_epsilon": 1e-3},
        "normalised residual": {**BLOOM, "apply_residual_connection_post_layernorm": True},
        "seven heads, untied": {**BLOOM, "hidden_size": 56, "n_head": 7, "tie_word_embeddings": False},
    },
    "mpt": {
        "plain": MPT,
        "six heads": {**MPT, "d_model": 48, "n_heads": 6},
        "clipped": {**MPT, "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.7}},
    },
    "gemma2": {
        "windows": {**SIZES, "head_dim": 8, "sliding_window": 5},
        "softcaps": {
            **SIZES,
            "head_dim": 12,
            "query_pre_attn_scalar": 3,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
        "no softcaps, biases": {
            **SIZES,
            "head_dim": 8,
            "attention_bias": True,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window": 5,
            "num_key_value_heads": 4,
        },
    },
    "gpt_oss": {
        "yarn": {
            **SIZES,
            **EXPERTS,
            "head_dim": 8,
            "sliding_window": 5,
            "rope_parameters": {**YARN, "truncate": False},
        },
        "no biases": {
            **SIZES,
            **EXPERTS,
            "head_dim": 8,
            "num_experts_per_tok": 4,
            "attention_bias": False,
            "layer_types": ["full_attention"] * 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}


WINDOWED = {**SIZES, "head_dim": 8, "sliding_window": 5}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
PARTIAL = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
BY_TYPE = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 4.0,
    "attention_bias": True,
    "mlp_bias": True,
}
# relatives of Llama
CASES |= {
    "ministral": {
        "windows": {**WINDOWED, "layer_types": MIXED},
        "yarn": {**SIZES, "head_dim": 12, "sliding_window": 9, "rope_parameters": YARN},
    },
    "cwm": {
        "windows": {**WINDOWED, "rope_parameters": LLAMA3, "bos_token_id": 0},
        "mixed": {**WINDOWED, "layer_types": MIXED, "bos_token_id": 0},
    },
    "seed_oss": {
        "plain": {**SIZES, "head_dim": 8},
        "biases": {**SIZES, "head_dim": 12, "attention_out_bias": True, "mlp_bias": True, "attention_bias": False},
    },
    "granite": {"scaled": {**SIZES, **GRANITE}, "plain": {**SIZES, "tie_word_embeddings": True}},
    "granite_swa": {
        "scaled": {**SIZES, **GRANITE, "num_attention_heads": 4, "sliding_window": 5},
        "thetas": {**SIZES, "sliding_window": 5, "layer_types": MIXED, "layer_rope_theta": [100.0, 0, 500.0]},
    },
    "hyperclovax": {
        "scaled": {**SIZES, **GRANITE, "head_dim": 12},
        "one norm": {**SIZES, "head_dim": 8, "use_post_norm": False},
    },
    "smollm3": {
        "no rope in layers": {**SIZES, "no_rope_layers": [1, 0, 1], "attention_bias": True, "mlp_bias": True},
        "windows": {**SIZES, "no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 5},
    },
    "arcee": {"plain": SIZES, "biases": {**SIZES, "attention_bias": True, "mlp_bias": True, "hidden_act": "silu"}},
    "jais2": {
        "plain": {**SIZES, "head_dim": 12},
        "no biases": {**SIZES, "attention_bias": False, "mlp_bias": False, "layer_norm_eps": 1e-3},
    },
    "starcoder2": {
        "plain": SIZES,
        "window, no biases": {**SIZES, "use_bias": False, "sliding_window": 5, "norm_epsilon": 1e-3},
        "gelu_new": {**SIZES, "hidden_act": "gelu_new", "tie_word_embeddings": False},
    },
    "olmo": {"plain": SIZES, "clipped": {**SIZES, "clip_qkv": 0.5, "attention_bias": True}},
    "olmo2": {
        "plain": {**SIZES, "rope_parameters": LLAMA3},
        "biases": {**SIZES, "attention_bias": True, "rms_norm_eps": 1e-3},
    },
    "olmo3": {
        "windows": {**SIZES, "num_hidden_layers": 4, "sliding_window": 5},
        "yarn": {**SIZES, "layer_types": MIXED, "sliding_window": 5, "rope_parameters": BY_TYPE},
    },
    "hunyuan_v1_dense": {
        "plain": {**SIZES, "head_dim": 8},
        "biases": {**SIZES, "head_dim": 12, "attention_bias": True},
    },
    "phi3": {
        "window": {**SIZES, "sliding_window": 5},
        "partial": {**SIZES, "rope_parameters": PARTIAL, "tie_word_embeddings": True},
    },
    "glm": {
        "plain": {**SIZES, "head_dim": 8},
        "rotary": {
            **SIZES,
            "head_dim": 16,
            "rope_parameters": {**PARTIAL, "partial_rotary_factor": 0.25},
            "attention_bias": False,
        },
    },
    "glm4": {
        "plain": {**SIZES, "head_dim": 8},
        "rotary": {**SIZES, "head_dim": 16, "rope_parameters": PARTIAL, "rms_norm_eps": 1e-3},
    },
}

NEO = {"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 32}
OPT = {**SIZES, "ffn_dim": 44, "word_embed_proj_dim": 32}
OPT = {name: value for name, value in OPT.items() if name not in ("intermediate_size", "num_key_value_heads")}
FALCON = {name: value for name, value in SIZES.items() if name not in ("intermediate_size", "num_key_value_heads")}
NEOX = {**FALCON, "intermediate_size": 44}
# relatives of GPT-2, and families with parallel attention and feed-forward network
CASES |= {
    "openai-gpt": {"plain": GPT2, "relu": {**GPT2, "afn": "relu", "tie_word_embeddings": False}},
    "gpt_bigcode": {
        "multi-query": GPT2,
        "multi-head": {**GPT2, "multi_query": False, "n_inner": 50, "activation_function": "gelu"},
        "unscaled": {**GPT2, "scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
    },
    "gpt_neo": {
        "alternating": {**NEO, "attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 5},
        "global": {**NEO, "attention_types": [[["global"], 3]], "intermediate_size": 50},
    },
    "opt": {
        "125m": OPT,
        "350m": {**OPT, "do_layer_norm_before": False, "activation_function": "gelu", "word_embed_proj_dim": 24},
    },
    "gptj": {
        "plain": {**GPT2, "rotary_dim": 4},
        "tied": {**GPT2, "rotary_dim": 8, "n_inner": 50, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-3},
    },
    "gpt_neox": {
        "parallel": {**NEOX, "rope_parameters": PARTIAL},
        "in turn, no biases": {
            **NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
    },
    "falcon": {
        "7b": FALCON,
        "40b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        "11b": {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "rw": {
            **FALCON,
            "alibi": True,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "ffn_hidden_size": 50,
        },
    },
    "phi": {
        "plain": {**SIZES, "rope_parameters": PARTIAL},
        "normalised": {
            **SIZES,
            "num_key_value_heads": 4,
            "qk_layernorm": True,
            "layer_norm_eps": 1e-3,
            "hidden_act": "gelu",
        },
    },
    "cohere": {
        "plain": {**SIZES, "logit_scale": 0.5},
        "normalised": {**SIZES, "use_qk_norm": True, "attention_bias": True, "layer_norm_eps": 1e-3},
    },
    "cohere2": {
        "windows": {**SIZES, "num_hidden_layers": 4, "sliding_window": 5},
        "mixed": {**SIZES, "layer_types": MIXED, "sliding_window": 5, "attention_bias": True, "logit_scale": 2.0},
    },
    "stablelm": {
        "plain": {**SIZES, "rope_parameters": PARTIAL},
        "parallel, normalised": {
            **SIZES,
            "rope_parameters": PARTIAL,
            "use_parallel_residual": True,
            "qk_layernorm": True,
            "use_qkv_bias": True,
        },
    },
}

GEMMA = {**SIZES, "head_dim": 8}
TEMPERATURE = {
    **YARN,
    "original_max_position_embeddings": 8,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.1, 1.3, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
}
DENSE_LATENT = {name: value for name, value in LATENT.items() if "expert" not in name and "moe" not in name}
del DENSE_LATENT["first_k_dense_replace"]
LITE = {name: value for name, value in LATENT.items() if name != "first_k_dense_replace"}
MISTRAL4 = {**LATENT, **GROUPS, "rope_parameters": {**TEMPERATURE, "partial_rotary_factor": 8 / 14}}
# relatives of Gemma, and families with latent attention
CASES |= {
    "gemma": {
        "plain": GEMMA,
        "biases": {**GEMMA, "attention_bias": True, "tie_word_embeddings": False, "hidden_act": "gelu"},
    },
    "gemma3_text": {
        "windows": {**GEMMA, "sliding_window": 5, "num_hidden_layers": 7, "query_pre_attn_scalar": 3},
        "softcaps": {
            **GEMMA,
            "layer_types": MIXED,
            "sliding_window": 5,
            "rope_parameters": BY_TYPE,
            "attention_bias": True,
            "final_logit_softcapping": 1.5,
        },
    },
    "vaultgemma": {
        "softcaps": {**GEMMA, "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
        "no softcaps": {
            **GEMMA,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "attention_bias": True,
        },
    },
    "nemotron": {
        "plain": {**SIZES, "head_dim": 8, "rope_parameters": PARTIAL},
        "biases": {
            **SIZES,
            "head_dim": 12,
            "attention_bias": True,
            "mlp_bias": True,
            "hidden_act": "silu",
            "norm_eps": 1e-3,
        },
    },
    "ministral3": {
        "temperature": {**SIZES, "head_dim": 8, "rope_parameters": TEMPERATURE},
        "window": {
            **SIZES,
            "head_dim": 12,
            "sliding_window": 5,
            "rope_parameters": LINEAR | {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 4},
        },
    },
    "youtu": {
        "query latent": DENSE_LATENT,
        "half layout": {**DENSE_LATENT, "rope_interleave": False, "q_lora_rank": None, "rope_parameters": MSCALE},
    },
    "minicpm3": {
        "scaled": {**DENSE_LATENT, "scale_emb": 3, "scale_depth": 0.9, "dim_model_base": 16},
        "biases": {**DENSE_LATENT, "attention_bias": True, "rope_parameters": YARN},
    },
    "glm4_moe_lite": {
        "groups": {**LITE, **GROUPS},
        "all sparse": {**LITE, "mlp_layer_types": ["sparse"] * 3, "rope_interleave": False, "norm_topk_prob": False},
    },
    "mistral4": {
        "groups": MISTRAL4,
        "one group": {
            **MISTRAL4,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.0,
            "first_k_dense_replace": 0,
        },
    },
}
CASES["phi3"]["longrope"] = {
    **SIZES,
    "original_max_position_embeddings": 16,
    "rope_parameters": LONGROPE,
}
CASES["phi3"]["longrope, short"] = {
    **SIZES,
    "original_max_position_embeddings": 32,
    "rope_parameters": LONGROPE,
}

MOE = {**SIZES, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
ROUTED = {**SIZES, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 20, "n_shared_experts": 2}
QWEN_MOE = {**MOE, "shared_expert_intermediate_size": 28}
LOCAL = {**SIZES, **EXPERTS, "head_dim": 8}
KOLIBRI = {name: value for name, value in MOE.items() if name != "intermediate_size"}
KOLIBRI |= {"head_dim": 8, "shared_expert_intermediate_size": 28, "sliding_window": 5}
SOLAR = {name: value for name, value in ROUTED.items() if name != "intermediate_size"}
SPARSE = ["sparse", "dense", "sparse"]
# mixtures of experts
CASES |= {
    "qwen2_moe": {
        "plain": QWEN_MOE,
        "windows": {
            **QWEN_MOE,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 2,
            "qkv_bias": False,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    },
    "qwen3_moe": {
        "plain": {**MOE, "head_dim": 12, "norm_topk_prob": True},
        "window": {
            **MOE,
            "head_dim": 8,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "attention_bias": True,
        },
    },
    "olmoe": {
        "plain": {**SIZES, "num_experts": 6, "num_experts_per_tok": 2},
        "clipped": {**SIZES, "num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 0.5, "norm_topk_prob": True},
    },
    "flex_olmo": {"plain": {**SIZES, "num_experts": 6, "num_experts_per_tok": 2, "attention_bias": True}},
    "mellum": {
        "plain": {**MOE, "head_dim": 8},
        "by type": {
            **MOE,
            "head_dim": 8,
            "layer_types": MIXED,
            "sliding_window": 5,
            "mlp_layer_types": SPARSE,
            "rope_parameters": BY_TYPE,
        },
    },
    "minimax_m2": {"plain": LOCAL, "partial": {**LOCAL, "rope_parameters": PARTIAL}},
    "glm4_moe": {
        "groups": {**ROUTED, **GROUPS, "head_dim": 8, "use_qk_norm": True},
        "biases": {
            **ROUTED,
            "head_dim": 12,
            "attention_bias": True,
            "first_k_dense_replace": 0,
            "norm_topk_prob": False,
        },
    },
    "dots1": {
        "groups": {**ROUTED, **GROUPS, "first_k_dense_replace": 1, "sliding_window": 5, "max_window_layers": 1},
        "mixed": {**ROUTED, "layer_types": MIXED, "sliding_window": 5, "norm_topk_prob": True, "attention_bias": True},
    },
    "solar_open": {
        "groups": {**SOLAR, **GROUPS, "head_dim": 8, "rope_parameters": YARN},
        "biases": {**SOLAR, "head_dim": 12, "attention_bias": True, "routed_scaling_factor": 2.5},
    },
    "hy_v3": {
        "plain": {**MOE, "head_dim": 8},
        "sparse, biases": {**MOE, "head_dim": 12, "mlp_layer_types": SPARSE, "attention_bias": True},
    },
    "kolibri1": {
        "windows": {**KOLIBRI, "num_hidden_layers": 5},
        "mixed": {**KOLIBRI, "layer_types": MIXED, "norm_topk_prob": True},
    },
    "mimo_v2_flash": {
        "mixed": {
            **ROUTED,
            "head_dim": 12,
            "v_head_dim": 6,
            "layer_types": MIXED,
            "sliding_window": 5,
            "num_key_value_heads": 1,
        },
        "by type": {
            **ROUTED,
            "head_dim": 8,
            "v_head_dim": 8,
            "sliding_window": 5,
            **GROUPS,
            "attention_value_scale": None,
            "rope_parameters": {name: {**value, "partial_rotary_factor": 0.5} for name, value in BY_TYPE.items()},
        },
    },
}
del CASES["mimo_v2_flash"]["mixed"]["n_shared_experts"], CASES["mimo_v2_flash"]["by type"]["n_shared_experts"]
CASES["gpt_oss"]["another clamp"] = {**LOCAL, "swiglu_limit": 0.5, "swiglu_alpha": 1.0, "sliding_window": 5}

LLAMA4 = {**LOCAL, "num_hidden_layers": 4, "intermediate_size_mlp": 28, "attention_chunk_size": 5, "floor_scale": 8}
CASES |= {
    "llama4_text": {
        "chunks": {**LLAMA4, "num_experts_per_tok": 1},
        "no norm": {
            **LLAMA4,
            "no_rope_layers": [1, 0, 0, 1],
            "use_qk_norm": False,
            "attention_bias": True,
            "attn_temperature_tuning": False,
            "interleave_moe_layer_step": 2,
        },
    }
}

HYBRID = ["linear_attention", "full_attention", "linear_attention"]
DELTA = {
    "layer_types": HYBRID,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
# as many key channels as value channels: transformers splits the kernels of OLMo's convolutions into equal thirds
EVEN = {**DELTA, "linear_num_key_heads": 4, "linear_key_head_dim": 6}
KIMI = {name: value for name, value in LATENT.items() if name not in ("n_routed_experts", "first_k_dense_replace")}
KIMI |= {"num_local_experts": 8, "q_lora_rank": None, "layer_types": HYBRID}
KIMI |= {"linear_num_heads": 4, "linear_head_dim": 8}
MINIMAX = {
    **LOCAL,
    "layer_types": HYBRID,
    "block_size": 16,
    "full_attn_alpha_factor": 1.7,
    "linear_attn_alpha_factor": 0.7,
    "linear_attn_beta_factor": 1.2,
    "mlp_alpha_factor": 1.5,
    "mlp_beta_factor": 0.8,
}
# hybrids of recurrent mixers and attention
CASES |= {
    "qwen3_next": {
        "dense layer": {**QWEN_MOE, **DELTA, "head_dim": 8, "mlp_only_layers": [1]},
        "interval": {
            **QWEN_MOE,
            **DELTA,
            "head_dim": 16,
            "layer_types": None,
            "full_attention_interval": 2,
            "linear_conv_kernel_dim": 3,
            "num_key_value_heads": 4,
            "attention_bias": True,
            "norm_topk_prob": False,
            "rope_parameters": PARTIAL,
        },
    },
    "qwen3_5_text": {
        "plain": {**SIZES, **DELTA, "head_dim": 8},
        "biases": {**SIZES, **DELTA, "head_dim": 16, "attention_bias": True, "rms_norm_eps": 1e-3},
    },
    "kimi_linear": {
        "plain": KIMI,
        "biases": {
            **KIMI,
            **GROUPS,
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "mlp_layer_types": SPARSE,
            "q_lora_rank": 12,
            "attention_bias": True,
            "linear_conv_kernel_dim": 3,
            "norm_topk_prob": False,
            "rms_norm_eps": 1e-3,
        },
    },
    "olmo_hybrid": {
        "plain": {**SIZES, **EVEN},
        "positive": {**SIZES, **EVEN, "linear_allow_neg_eigval": False, "attention_bias": True, "rms_norm_eps": 1e-3},
    },
    "minimax": {
        "weighted": MINIMAX,
        "window, six heads": {
            **MINIMAX,
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_hidden_layers": 2,
            "layer_types": None,
            "sliding_window": 5,
            "block_size": 8,
        },
    },
}


def reference(model_type: str, settings: dict[str, Any], strong: bool) -> nn.Module:
    """Return a model of ``transformers`` in evaluation mode, with its own initialisation or with strong weights."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = transformers.AutoConfig.for_model(model_type, **{**special, **settings})
    eager = (
        {} if settings.get("alibi") else {"attn_implementation": "eager"}
    )  # Falcon's eager attention adds ALiBi twice
    model = getattr(transformers, FAMILIES[model_type].architecture)._from_config(config, **eager).eval()
    if strong:
        strengthen(model)
    return model


@torch.no_grad()
def strengthen(model: nn.Module) -> None:
    """Draw large weights and uneven biases and norms, so that a wrong activation, order or sign changes the logits."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1 and name == "weight":  # of a norm, stored around 0 or 1
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.5))
        for name, buffer in module.named_buffers(recurse=False):
            if name == "e_score_correction_bias":
                buffer.copy_(torch.randn_like(buffer) * 0.3)


def ids(vocab_size: int, tokens: int = TOKENS) -> Tensor:
    """Return random token ids (2, T)."""
    return torch.randint(vocab_size, (2, tokens))
