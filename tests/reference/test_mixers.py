"""Recurrent mixers equal the modules of transformers with the same weights."""

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
DELTA = 3e-4  # tolerance of delta rules, in standard deviations: both implementations solve triangular systems
Weights = dict[str, Tensor]


def mixer(settings: dict[str, Any]) -> Attention:
    """Return the attention of a one-layer model."""
    model = GPTModel(GPTConfig(d_model=WIDTH, n_heads=4, n_layers=1, pos="none", bias=False, attention=settings))
    attention = model.blocks[0].attention
    assert isinstance(attention, Attention)
    return attention


def with_random_weights(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "A_log" in name:
                parameter.uniform_(0.0, 2.0)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:  # overwritten, since some modules leave them uninitialised
                parameter.normal_(mean=float("norm" in name), std=0.4)
    return module.eval()


def delta_weights(hf_weights: Weights, projections: list[Tensor], names: tuple[str, ...]) -> Weights:
    """Return the convolutions of a delta rule, and its projections by their names here.

    Args:
        hf_weights: has the convolution kernels of queries, keys and values in one tensor
        projections: weights (out, D) of queries, keys, values and others
        names: names of the projections here
    """
    keys, values = len(projections[0]), len(projections[2])
    convs = hf_weights["conv1d.weight"][:, 0].split([keys, keys, values])
    kernels = {f"{name}_conv.weight": conv for name, conv in zip(("query", "key", "value"), convs, strict=True)}
    return {**kernels, **{f"{name}.weight": weight for name, weight in zip(names, projections, strict=True)}}


PROJECTIONS = ("query", "key", "value", "gate", "rate", "decay")
DECAY = {"log_decay": "A_log", "decay_offset": "dt_bias"}


def from_qwen3_next(hf_weights: Weights) -> Weights:
    """Split the projections, which transformers interleaves by key head: (q, k, v, gate) and (rate, decay)."""
    keys, per_key, width = 2, 2, 6
    grouped = hf_weights["in_proj_qkvz.weight"].unflatten(0, (keys, -1))
    q, k, v, z = grouped.split([8, 8, per_key * width, per_key * width], dim=1)
    rate, decay = hf_weights["in_proj_ba.weight"].unflatten(0, (keys, -1)).split([per_key, per_key], dim=1)
    found = delta_weights(hf_weights, [weight.flatten(0, 1) for weight in (q, k, v, z, rate, decay)], PROJECTIONS)
    rest = {**DECAY, "norm.weight": "norm.weight", "out.weight": "out_proj.weight"}
    return found | {name: hf_weights[other] for name, other in rest.items()}


def from_olmo_hybrid(hf_weights: Weights) -> Weights:
    found = delta_weights(hf_weights, [hf_weights[f"{letter}_proj.weight"] for letter in "qkvgba"], PROJECTIONS)
    rest = {**DECAY, "norm.weight": "o_norm.weight", "out.weight": "o_proj.weight"}
    return found | {name: hf_weights[other] for name, other in rest.items()}


def from_kimi_linear(hf_weights: Weights) -> Weights:
    hf_names = [
        "q_proj",
        "k_proj",
        "v_proj",
        "g_b_proj",
        "b_proj",
        "forget_gate.f_b_proj",
        "g_a_proj",
        "forget_gate.f_a_proj",
    ]
    names = (*PROJECTIONS, "gate_down", "decay_down")
    found = delta_weights(hf_weights, [hf_weights[f"{name}.weight"] for name in hf_names], names)
    found |= {"log_decay": hf_weights["forget_gate.A_log"].flatten(), "decay_offset": hf_weights["forget_gate.dt_bias"]}
    return found | {"norm.weight": hf_weights["o_norm.weight"], "out.weight": hf_weights["o_proj.weight"]}


def from_minimax(hf_weights: Weights) -> Weights:
    q, k, v = (weight.flatten(0, 1) for weight in hf_weights["qkv_proj.weight"].unflatten(0, (4, -1)).chunk(3, dim=1))
    rest = {"gate.weight": "output_gate.weight", "norm.weight": "norm.weight", "out.weight": "out_proj.weight"}
    found = {"query.weight": q, "key.weight": k, "value.weight": v}
    return found | {name: hf_weights[other] for name, other in rest.items()}


def from_lfm2(hf_weights: Weights) -> Weights:
    names = ("input_gate", "output_gate", "value")
    found = {f"{name}.weight": chunk for name, chunk in zip(names, hf_weights["in_proj.weight"].chunk(3), strict=True)}
    found |= {f"{name}.bias": chunk for name, chunk in zip(names, hf_weights["in_proj.bias"].chunk(3), strict=True)}
    found |= {"conv.weight": hf_weights["conv.weight"][:, 0], "conv.bias": hf_weights["conv.bias"]}
    return found | {"out.weight": hf_weights["out_proj.weight"], "out.bias": hf_weights["out_proj.bias"]}


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
    make, settings, convert, tolerance = CASES[name]
    hf_module, attention = with_random_weights(make()), mixer(settings)
    attention.load_state_dict(convert(dict(hf_module.named_parameters())))  # strict: all parameters must be given
    x = torch.randn(2, TOKENS, WIDTH)
    expected = hf_module(x, position_embeddings=None, attention_mask=None)[0] if name == "minimax" else hf_module(x)
    actual = attention(x, Positions(0, TOKENS, None, x.device))
    parity(f"{name}, one layer", actual, expected, tolerance)
