"""`import modular_gpt` imports torch and little else; other libraries are imported lazily."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"hydra", "omegaconf", "transformers", "tiktoken", "tokenizers", "huggingface_hub", "matplotlib"}
STATEMENTS = ["import modular_gpt", "from modular_gpt import GPTConfig, GPTModel; GPTModel(GPTConfig(vocab_size=7))"]


@pytest.fixture(scope="module")
def imported(root: Path) -> dict[str, list[str]]:
    """The imported modules after each statement, in one fresh interpreter."""
    code = f"""
import json, sys
found = {{}}
for statement in {STATEMENTS}:
    exec(statement)
    found[statement] = [name for name in sys.modules if "." not in name]
print(json.dumps(found))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str]] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("statement", STATEMENTS)
def test_no_heavy_library_is_imported(imported: dict[str, list[str]], statement: str) -> None:
    assert "modular_gpt" in imported[statement]
    assert not set(imported[statement]) & HEAVY
