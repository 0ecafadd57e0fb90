"""Mixtral: https://arxiv.org/abs/2401.04088"""

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.pretrained.config_map import ANY, HFConfig
from modular_gpt.pretrained.families import mistral
from modular_gpt.pretrained.families.llama_like import ATTENTION, ENDS, LAYER, NORMS, decoder
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.tensor_map import TensorMapping

_EXPERT = f"{LAYER}.block_sparse_moe.experts.{{expert}}"


def from_hf(settings: HFConfig) -> PlainDict:
    ours = decoder(settings)
    ours["attention"]["window"] = settings["sliding_window"]
    ours["ffn"] |= {
        "name": "moe",
        "n_experts": settings["num_local_experts"],
        "top_k": settings["num_experts_per_tok"],
        # transformers counts every choice of a token, and averages over layers where this program sums
        "balance_weight": settings["router_aux_loss_coef"]
        * settings["num_experts_per_tok"]
        / settings["num_hidden_layers"],
        "z_weight": 0.0,
    }
    return ours


FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    rules=(
        *ENDS,
        *NORMS,
        *ATTENTION,
        TensorMapping(f"{LAYER}.block_sparse_moe.gate.weight", ("blocks.{layer}.ffn.router.weight",)),
        TensorMapping(f"{_EXPERT}.w1.weight", ("blocks.{layer}.ffn.gate",)),
        TensorMapping(f"{_EXPERT}.w2.weight", ("blocks.{layer}.ffn.down",)),
        TensorMapping(f"{_EXPERT}.w3.weight", ("blocks.{layer}.ffn.up",)),
    ),
    from_hf=from_hf,
    synonyms={"num_experts": "num_local_experts"},
    harmless={"router_jitter_noise": ANY},
    defaults={
        **mistral.FAMILY.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.001,
    },
)
