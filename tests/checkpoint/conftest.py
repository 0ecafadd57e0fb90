"""A small model, saved."""

from pathlib import Path

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint import FOLDER, save_checkpoint
from modular_gpt.core.atomic_files import link
from modular_gpt.data import build_tokenizer

SMALL = {"vocab_size": 256, "d_model": 16, "n_heads": 2, "n_layers": 2, "context_length": 16}


@pytest.fixture
def model() -> GPTModel:
    return GPTModel(SMALL)


@pytest.fixture
def saved(tmp_path: Path, model: GPTModel) -> Path:
    """A checkpoint with every optional file."""
    tensors = {"optimizer": {"weight/exp_avg": torch.randn(64, 64)}}
    return save_checkpoint(tmp_path / "saved", model, build_tokenizer("byte"), meta={"step": 7}, tensors=tensors)


@pytest.fixture
def run(tmp_path: Path, model: GPTModel) -> Path:
    """A run directory with checkpoints of steps 1, 2 and 3; step 2 is the best."""
    folder = tmp_path / "runs" / "one" / FOLDER
    for step in (1, 2, 3):
        save_checkpoint(folder / f"step_{step:08}", model, build_tokenizer("byte"), meta={"step": step})
    link(folder / "latest", "step_00000003")
    link(folder / "best", "step_00000002")
    link(folder.parent.parent / "latest", "one")
    return folder.parent
