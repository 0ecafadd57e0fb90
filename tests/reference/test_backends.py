"""The backends of attention agree: fused kernels (auto), eager computation (math), and FlexAttention (flex)."""

from typing import Any

import pytest
import torch

from modular_gpt import GPTModel
from tests.reference.cases import TOKENS, ids
from tests.reference.conftest import Parity

SIZES = {"vocab_size": 61, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": 32, "init_std": 0.4}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"attention": {"name": "gqa", "n_kv_heads": 2}, "pos": "rope"},
    "window": {"attention": {"name": "swa", "window": 5}},
    "alibi": {"pos": "alibi", "attention": "mqa"},
    "softcap": {"attention": {"name": "gqa", "n_kv_heads": 2, "softcap": 2.0}, "pos": "rope"},
    "sinks": {"attention": {"name": "mha", "sinks": True, "window": 7}, "pos": "alibi"},
    "grouped sinks": {"attention": {"name": "gqa", "n_kv_heads": 2, "sinks": True, "window": 7}, "pos": "alibi"},
    "latent": {"attention": {"name": "mla", "window": 9, "softcap": 3.0}, "pos": "rope"},
}
COMPILED = ("grouped sinks",)  # FlexAttention is compiled for each case, which takes seconds


def with_backend(model: GPTModel, backend: str) -> GPTModel:
    """Return a copy of ``model`` with another backend and the same weights."""
    settings = model.config.to_dict()
    other = GPTModel({**settings, "attention": {**settings["attention"], "backend": backend}}).eval()
    other.load_state_dict(model.state_dict())
    return other


def model_of(case: str) -> GPTModel:
    model = GPTModel(**{**SIZES, **CASES[case]}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.normal_()
    return model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_auto_equals_math(case: str, padded: bool, parity: Parity) -> None:
    model, tokens = model_of(case), ids(61)
    padding = torch.tensor([0, 6]) if padded else None
    expected = with_backend(model, "math")(tokens, padding=padding)
    parity("backend auto, math", model(tokens, padding=padding)[:, 6:], expected[:, 6:])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("case", COMPILED)
@torch.no_grad()
def test_flex_equals_math(case: str, parity: Parity) -> None:
    model, tokens = model_of(case), ids(61)
    parity("backend flex, math", with_backend(model, "flex")(tokens), with_backend(model, "math")(tokens))


@pytest.mark.parametrize("case", ["gqa", "window", "softcap", "sinks"])
@torch.no_grad()
def test_cached_decoding_with_auto_equals_math(case: str, parity: Parity) -> None:
    """Decoding token by token, for which other kernels are chosen, equals eager attention over the whole text."""
    model, tokens = model_of(case), ids(61)
    cache = model.new_cache(2, TOKENS)
    steps = [model(tokens[:, t : t + 1], cache=cache) for t in range(TOKENS)]
    parity("backend auto step by step, math", torch.cat(steps, dim=1), with_backend(model, "math")(tokens))
