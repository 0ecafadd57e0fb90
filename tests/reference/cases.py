"""Small models of the ``transformers`` library: what to build, and weights that show mistakes."""

from typing import Any

import torch
from torch import Tensor, nn

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

# model type -> what makes a case different -> settings of the config
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


def reference(kind: str, settings: dict[str, Any], strong: bool) -> nn.Module:
    """A model of ``transformers`` in evaluation mode, with its own initial weights or with strong ones."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = transformers.AutoConfig.for_model(kind, **settings, **special)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if strong:
        strengthen(model)
    return model


@torch.no_grad()
def strengthen(model: nn.Module) -> None:
    """Weights so large, and biases and norms so uneven, that a wrong activation, order or sign shows."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1 and name == "weight":  # of a norm, which may store it around 0 or around 1
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.5))
        for name, buffer in module.named_buffers(recurse=False):
            if name == "e_score_correction_bias":
                buffer.copy_(torch.randn_like(buffer) * 0.3)


def ids(vocab_size: int, tokens: int = TOKENS) -> Tensor:
    """(2, T) random token ids."""
    return torch.randint(vocab_size, (2, tokens))
