"""A small model, saved."""

from pathlib import Path

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.data import build_tokenizer

SMALL = {"vocab_size": 256, "d_model": 16, "n_heads": 2, "n_layers": 2, "context_length": 16}


@pytest.fixture
def model() -> GPTModel:
    return GPTModel(SMALL)


@pytest.fixture
def saved(tmp_path: Path, model: GPTModel) -> Path:
    """A checkpoint with everything that one can have."""
    tensors = {"optimizer": {"weight/exp_avg": torch.randn(64, 64)}}
    return save_checkpoint(tmp_path / "saved", model, build_tokenizer("byte"), meta={"step": 7}, tensors=tensors)
