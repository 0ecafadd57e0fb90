"""Small models of every attention, with large weights, so that a wrong token is detected."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.registry import entries

transformers.utils.logging.disable_progress_bar()

SMALL: dict[str, Any] = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=40, init_std=0.3)
WINDOW = 5


def attentions() -> list[Any]:
    """Return every registered attention; the window of swa is shorter than the texts."""
    return [{"name": name, "window": WINDOW} if name == "swa" else name for name in entries("attention")]


def has_rows(attention: Any) -> bool:
    """Return whether the cache of the attention has a row for each token; a constant state cannot be rolled back."""
    config = GPTConfig(**SMALL, attention=attention)
    return bool(config.layer_configs[0].cache_spec(config.dims).rows)


def attention_name(attention: Any) -> str:
    return attention if isinstance(attention, str) else attention["name"]


@pytest.fixture
def small() -> Callable[..., GPTModel]:
    def make(**settings: Any) -> GPTModel:
        torch.manual_seed(0)
        return GPTModel(GPTConfig(**{**SMALL, "pos": "rope", **settings})).eval()

    return make
