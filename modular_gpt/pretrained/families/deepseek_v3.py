"""DeepSeek-V3: https://arxiv.org/abs/2412.19437"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families import deepseek_v2
from modular_gpt.pretrained.families.llama_like import DEFAULTS
from modular_gpt.pretrained.family import Family


def from_hf(settings: HFConfig) -> PlainDict:
    ours = deepseek_v2.latent_decoder(settings)
    ours["pos"]["layout"] = "interleaved" if settings["rope_interleave"] else "half"
    ours["ffn"] |= {
        "score": "sigmoid",
        "norm_topk": settings["norm_topk_prob"],
        "groups": settings["n_group"],
        "top_groups": settings["topk_group"],
        "group_score": "top2",
        "balance": "bias",
    }
    return ours


FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    rules=deepseek_v2.RULES,
    from_hf=from_hf,
    synonyms={"num_local_experts": "n_routed_experts"},
    harmless={
        **deepseek_v2.UNUSED,
        "num_mtp_layers": ANY,
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
    # the layer after the last predicts a further token, for training only
    ignored=(r".*rotary_emb\.inv_freq", r"model\.layers\.{n_layers}\..*"),
    defaults={
        **DEFAULTS,
        "vocab_size": 129280,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "max_position_embeddings": 4096,
        "rope_interleave": True,
        "first_k_dense_replace": 3,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "routed_scaling_factor": 2.5,
        "topk_group": 4,
        "norm_topk_prob": True,
        "v_head_dim": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
    },
)
