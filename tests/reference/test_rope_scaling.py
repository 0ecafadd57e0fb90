"""Frequencies of each RoPE scaling, at the sizes of published models, equal those of ``transformers``."""

from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTConfig
from modular_gpt.core.contracts import Positions
from modular_gpt.mapping.hf_config import HFConfig
from modular_gpt.nn.pos.rope import RoPE
from modular_gpt.pretrained.families.rope_config import position, rope_parameters
from tests.reference.conftest import Parity

# name -> (context length, number of tokens, width of a head, rope_parameters)
PUBLISHED: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "linear": (4096, 40, 128, {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    "dynamic, shorter than trained for": (64, 40, 64, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    "dynamic, longer than trained for": (64, 100, 64, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
    "llama3": (
        131072,
        40,
        128,
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
    ),
    "yarn, Qwen": (
        131072,
        40,
        128,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
    ),
    "yarn, DeepSeek": (
        163840,
        40,
        64,
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "mscale": 0.707,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "rope_theta": 1e4,
        },
    ),
    "yarn, GPT-OSS": (
        131072,
        40,
        64,
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
            "rope_theta": 150000.0,
        },
    ),
}


def rotation_of(rope: RoPE, length: int, width: int) -> tuple[Tensor, Tensor]:
    """Return (frequencies, magnitudes) (N/2,) of the pairs of dimensions, from the rotation at position 1."""
    x = torch.zeros(1, 1, length, width)
    x[..., : width // 2] = 1.0
    at_one = rope.rotate(x, Positions(0, length, None, x.device))[0, 0, 1]
    cos, sin = at_one.split(width // 2)
    return torch.atan2(sin, cos), torch.hypot(sin, cos)


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_equal_those_of_transformers(name: str, parity: Parity) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    context_length, length, width, parameters = PUBLISHED[name]
    hf_config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=1,
        max_position_embeddings=context_length,
        rope_parameters=dict(parameters),
    )
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](hf_config, seq_len=length)
    settings = HFConfig({"rope_parameters": parameters, "rope_theta": 1.0, "max_position_embeddings": context_length})
    pos = {"name": "rope", **position(rope_parameters(settings), settings, None)}
    config = GPTConfig(d_model=width, n_heads=1, context_length=context_length, pos=pos)
    actual, actual_magnitudes = rotation_of(RoPE(config.layer_configs[0].pos, config.dims), length, width)
    torch.testing.assert_close(actual, frequencies, rtol=1e-5, atol=0)
    torch.testing.assert_close(actual_magnitudes, torch.full_like(actual, magnitude), rtol=1e-6, atol=0)
    parity("rope frequencies", actual, frequencies)
