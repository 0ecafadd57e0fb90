"""MiniMax-01, with lightning attention in half of its layers: https://arxiv.org/abs/2501.08313"""

import torch
from torch import Tensor

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import encode
from modular_gpt.model.config import GPTConfig
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.decoder_keys import FULL, RMSNORM, WINDOW, biases
from modular_gpt.pretrained.families.expert_keys import ALL_SPARSE, experts, router_loss
from modular_gpt.pretrained.families.hybrid import LINEAR, QKVZ, SILU, mixers, recurrent_types, rotated
from modular_gpt.pretrained.families.llama import START
from modular_gpt.pretrained.families.moe import W123
from modular_gpt.pretrained.families.rope_config import rope
from modular_gpt.pretrained.families.tensor_names import (
    ATTENTION,
    ENDS,
    LAYER,
    OURS,
    PRE_NORMS,
    in_layer,
    unless,
    where,
)
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.setting_map import Keys, ModelView, key, layer_count, per_layer
from modular_gpt.pretrained.tensor_map import FUSED_PER_HEAD, TensorMapping


def _minimax_types(settings: HFConfig) -> list[str]:
    return [FULL if (i + 1) % 2 else LINEAR for i in range(layer_count(settings))]


RESIDUALS = {FULL: "full_attn", LINEAR: "linear_attn"}


def _read_minimax(settings: HFConfig) -> PlainDict:
    """MiniMax's weights of the residual connections, and decays that are slower in later layers."""
    count, types = layer_count(settings), recurrent_types(settings, _minimax_types)
    after = [float(settings[f"mlp_{name}_factor"]) for name in ("alpha", "beta")]
    weights = {
        name: [*(float(settings[f"{prefix}_{factor}_factor"]) for factor in ("alpha", "beta")), *after]
        for name, prefix in RESIDUALS.items()
    }
    return {
        "block.topology": "norm_residual",
        "block.residual_weights": per_layer(weights[name] for name in types),
        "attention@lightning.head_dim": settings["head_dim"],
        "attention@lightning.decay_rates": "geometric",
        "attention@lightning.decay_scale": per_layer(1 - i / (count - 1 + 1e-5) + 1e-5 for i in range(count)),
    }


def _write_minimax(view: ModelView) -> PlainDict:
    keys: PlainDict = {}
    for layer in view.layers:
        prefix = RESIDUALS[LINEAR if layer.attention.name == "lightning" else FULL]
        names = [f"{place}_{factor}_factor" for place in (prefix, "mlp") for factor in ("alpha", "beta")]
        keys |= dict(zip(names, layer.residual_weights or [1.0] * 4, strict=True))
    return keys | ({} if view["attention@mha.head_dim"] else {"head_dim": view["attention@lightning.head_dim"]})


LIGHTNING = f"{OURS}.attention.norm.weight"
MINIMAX = (
    START,
    RMSNORM,
    rope(where=rotated(_minimax_types)),
    biases(False),
    WINDOW,
    mixers("lightning", _minimax_types),
    Keys(_read_minimax, _write_minimax),
    key("block_size", "attention@lightning.chunk"),
    experts("num_local_experts", "intermediate_size"),
    router_loss(),
    ALL_SPARSE,
    SILU,
)
MINIMAX_TENSORS = [
    *unless(LIGHTNING, ATTENTION),
    TensorMapping(f"{LAYER}.self_attn.qkv_proj.weight", QKVZ[:3], FUSED_PER_HEAD, where=LIGHTNING),
    *in_layer(f"{LAYER}.self_attn", attention__gate="output_gate", attention__norm="norm"),
    *where(LIGHTNING, in_layer(f"{LAYER}.self_attn", attention__out="out_proj")),
]


def minimax_tables(config: GPTConfig) -> dict[str, Tensor]:
    """The decays within a block of tokens, which the files of MiniMax have for each layer with lightning attention."""
    found: dict[str, Tensor] = {}
    for index, layer in enumerate(config.layer_configs):
        if layer.attention.name != "lightning":
            continue
        mixer = encode(layer.attention)
        block = mixer["chunk"]
        steps = torch.arange(block) + 1
        rates = ((1 / (2 ** (8 / config.n_heads))) ** (torch.arange(config.n_heads) + 1))[:, None, None]
        rates = rates * mixer["decay_scale"]
        distance = (steps[:, None] - steps)[None, None]
        tables = {
            "slope_rate": rates,
            "query_decay": torch.exp(-rates * steps[:, None]),
            "key_decay": torch.exp(-rates * (block - steps[:, None])),
            "diagonal_decay": torch.exp((-rates * distance).where(distance >= 0, -torch.inf)),
        }
        found |= {f"model.layers.{index}.self_attn.{name}": table for name, table in tables.items()}
    return found


MINIMAX_TABLES = r"model\.layers\.\d+\.self_attn\.(slope_rate|(query|key|diagonal)_decay)"

FAMILIES = [
    Family(
        "minimax",
        MINIMAX,
        (ENDS, PRE_NORMS, MINIMAX_TENSORS, W123),
        ignored=(MINIMAX_TABLES,),
        tables=minimax_tables,
    )
]
