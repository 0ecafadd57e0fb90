"""`import modular_gpt` costs torch and little else: the rest is imported by what uses it."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"hydra", "omegaconf", "transformers", "tiktoken", "tokenizers", "huggingface_hub", "matplotlib"}


@pytest.mark.parametrize(
    "statement",
    ["import modular_gpt", "from modular_gpt import GPTConfig, GPTModel; GPTModel(GPTConfig(vocab_size=7))"],
)
def test_nothing_heavy_is_imported(root: Path, statement: str) -> None:
    code = f"{statement}\nimport sys; print(*(name for name in sys.modules if '.' not in name))"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    assert "modular_gpt" in imported
    assert not imported & HEAVY
