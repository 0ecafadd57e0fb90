"""Recurrent mixers against the modules of transformers, with the same weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import KimiLinearConfig, Lfm2Config, MiniMaxConfig, OlmoHybridConfig, Qwen3NextConfig
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.contracts import Attention, Positions
from tests.reference.conftest import Parity

WIDTH, TOKENS = 32, 150  # more than two chunks of 64
DELTA = 3e-4  # tolerance of delta rules, in standard deviations: both sides solve triangular systems in float32
Weights = dict[str, Tensor]


def ours(settings: dict[str, Any]) -> Attention:
    model = GPTModel(GPTConfig(d_model=WIDTH, n_heads=4, n_layers=1, pos="none", bias=False, attention=settings))
    attention = model.blocks[0].attention
    assert isinstance(attention, Attention)
    return attention


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "A_log" in name:
                parameter.uniform_(0.0, 2.0)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:  # not added to the values there, since some modules leave theirs uninitialised
                parameter.normal_(mean=float("norm" in name), std=0.4)
    return module.eval()


def delta_weights(theirs: Weights, projections: list[Tensor], parts: tuple[str, ...]) -> Weights:
    """Weights of the convolutions, decays, norm and output, which the three delta rules share, and projections."""
    keys, values = len(projections[0]), len(projections[2])
    convs = theirs["conv1d.weight"][:, 0].split([keys, keys, values])
    named = {f"{name}_conv.weight": conv for name, conv in zip(("query", "key", "value"), convs, strict=True)}
    return {**named, **{f"{name}.weight": weight for name, weight in zip(parts, projections, strict=True)}}


PARTS = ("query", "key", "value", "gate", "rate", "decay")
DECAY = {"log_decay": "A_log", "decay_offset": "dt_bias"}


def from_qwen3_next(theirs: Weights) -> Weights:
    """Queries, keys, values and gates are interleaved by key head, rates and decays as well."""
    keys, per_key, width = 2, 2, 6
    grouped = theirs["in_proj_qkvz.weight"].unflatten(0, (keys, -1))
    q, k, v, z = grouped.split([8, 8, per_key * width, per_key * width], dim=1)
    rate, decay = theirs["in_proj_ba.weight"].unflatten(0, (keys, -1)).split([per_key, per_key], dim=1)
    found = delta_weights(theirs, [each.flatten(0, 1) for each in (q, k, v, z, rate, decay)], PARTS)
    rest = {**DECAY, "norm.weight": "norm.weight", "out.weight": "out_proj.weight"}
    return found | {name: theirs[other] for name, other in rest.items()}


def from_olmo_hybrid(theirs: Weights) -> Weights:
    found = delta_weights(theirs, [theirs[f"{each}_proj.weight"] for each in "qkvgba"], PARTS)
    rest = {**DECAY, "norm.weight": "o_norm.weight", "out.weight": "o_proj.weight"}
    return found | {name: theirs[other] for name, other in rest.items()}


def from_kimi_linear(theirs: Weights) -> Weights:
    names = [
        "q_proj",
        "k_proj",
        "v_proj",
        "g_b_proj",
        "b_proj",
        "forget_gate.f_b_proj",
        "g_a_proj",
        "forget_gate.f_a_proj",
    ]
    parts = (*PARTS, "gate_down", "decay_down")
    found = delta_weights(theirs, [theirs[f"{name}.weight"] for name in names], parts)
    found |= {"log_decay": theirs["forget_gate.A_log"].flatten(), "decay_offset": theirs["forget_gate.dt_bias"]}
    return found | {"norm.weight": theirs["o_norm.weight"], "out.weight": theirs["o_proj.weight"]}


def from_minimax(theirs: Weights) -> Weights:
    q, k, v = (each.flatten(0, 1) for each in theirs["qkv_proj.weight"].unflatten(0, (4, -1)).chunk(3, dim=1))
    rest = {"gate.weight": "output_gate.weight", "norm.weight": "norm.weight", "out.weight": "out_proj.weight"}
    found = {"query.weight": q, "key.weight": k, "value.weight": v}
    return found | {name: theirs[other] for name, other in rest.items()}


def from_lfm2(theirs: Weights) -> Weights:
    names = ("input_gate", "output_gate", "value")
    found = {f"{name}.weight": part for name, part in zip(names, theirs["in_proj.weight"].chunk(3), strict=True)}
    found |= {f"{name}.bias": part for name, part in zip(names, theirs["in_proj.bias"].chunk(3), strict=True)}
    found |= {"conv.weight": theirs["conv.weight"][:, 0], "conv.bias": theirs["conv.bias"]}
    return found | {"out.weight": theirs["out_proj.weight"], "out.bias": theirs["out_proj.bias"]}


DELTA_SIZES = dict(
    hidden_size=WIDTH, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=6
)
DELTA_HEADS = {"name": "gated_delta", "key_heads": 2, "value_heads": 4, "key_dim": 8, "value_dim": 6}
Case = tuple[Callable[[], nn.Module], dict[str, Any], Callable[[Weights], Weights], float]
CASES: dict[str, Case] = {
    "qwen3_next": (
        lambda: Qwen3NextGatedDeltaNet(Qwen3NextConfig(**DELTA_SIZES, rms_norm_eps=1e-3), 0),
        {**DELTA_HEADS, "eps": 1e-3},
        from_qwen3_next,
        DELTA,
    ),
    "olmo_hybrid": (
        lambda: OlmoHybridGatedDeltaNet(OlmoHybridConfig(**DELTA_SIZES, linear_allow_neg_eigval=True), 0),
        {**DELTA_HEADS, "eps": 1e-5, "negative": True},
        from_olmo_hybrid,
        DELTA,
    ),
    "kimi_linear": (
        lambda: KimiLinearDeltaAttention(
            KimiLinearConfig(hidden_size=WIDTH, linear_num_heads=4, linear_head_dim=8, rms_norm_eps=1e-3), 0
        ),
        {"name": "kda", "value_heads": 4, "key_dim": 8, "value_dim": 8, "rank": 8, "eps": 1e-3},
        from_kimi_linear,
        DELTA,
    ),
    "minimax": (
        lambda: MiniMaxLightningAttention(
            MiniMaxConfig(hidden_size=WIDTH, num_attention_heads=4, num_hidden_layers=4, block_size=16), 1
        ),
        {"name": "lightning", "decay_scale": 1 - 1 / (3 + 1e-5) + 1e-5},
        from_minimax,
        2e-5,
    ),
    "lfm2": (
        lambda: Lfm2ShortConv(Lfm2Config(hidden_size=WIDTH, conv_bias=True, conv_L_cache=4), 0),
        {"name": "shortconv", "kernel": 4, "bias": True},
        from_lfm2,
        2e-5,
    ),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_mixer_equals_the_published_module(name: str, parity: Parity) -> None:
    make, settings, converted, tolerance = CASES[name]
    theirs, attention = randomised(make()), ours(settings)
    weights = dict(theirs.named_parameters())
    attention.load_state_dict(converted(weights))  # strict: every parameter of both has its counterpart
    x = torch.randn(2, TOKENS, WIDTH)
    expected = theirs(x, position_embeddings=None, attention_mask=None)[0] if name == "minimax" else theirs(x)
    got = attention(x, Positions(0, TOKENS, None, x.device))
    parity(f"{name}, one layer", got, expected, tolerance)
