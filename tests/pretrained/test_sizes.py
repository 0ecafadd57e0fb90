"""Sizes in a config.json that exceed those of its tensors are refused before a model is built."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modular_gpt import CheckpointError
from modular_gpt.core.errors import UserError
from modular_gpt.pretrained import FAMILIES, load_pretrained
from tests.pretrained.conftest import Saved
from tests.reference.cases import CASES

EXPERTS = {
    "mixtral": "num_local_experts",
    "gpt_oss": "num_local_experts",
    "deepseek_v2": "n_routed_experts",
    "deepseek_v3": "n_routed_experts",
}
# one family for each way of storing sizes, and for each way of storing experts
MODEL_TYPES = ["gpt2", "llama", "bloom", "mpt", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "gpt_neo", "falcon"]
HUGE = [10**5, 10**9, 2**70, 1e9, 1e300]


def error_message(folder: Path, **changes: Any) -> str:
    """Return the message for a config.json with other settings; loading it allocates less than 50 MB."""
    original = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**original, **changes}))
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as caught:
            load_pretrained(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        (folder / "config.json").write_text(json.dumps(original))
    assert peak < 50e6, changes
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module", params=MODEL_TYPES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    model_type = request.param
    folder = tmp_path_factory.mktemp(model_type)
    Saved(folder, model_type, next(iter(CASES[model_type].values())))
    return model_type, folder


def test_more_layers_than_the_tensors_have_are_refused(saved: tuple[str, Path]) -> None:
    model_type, folder = saved
    for huge in HUGE:
        assert "its tensors are those of 3 layers" in error_message(folder, **{FAMILIES[model_type].layers: huge})
    for wrong in ("many", [3], {"a": 3}, True, -1, 0):
        error_message(folder, **{FAMILIES[model_type].layers: wrong})


def test_larger_sizes_than_the_tensors_have_are_refused(saved: tuple[str, Path]) -> None:
    model_type, folder = saved
    names = {**json.loads((folder / "config.json").read_text()), **FAMILIES[model_type].defaults}
    sizes = [
        n for n in ("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "n_inner") if n in names
    ]
    for name in [*sizes, *([EXPERTS[model_type]] if model_type in EXPERTS else [])]:
        for huge in (10**9, 2**62):
            error_message(folder, **{name: huge})


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    """With the config.json of another model, the message names the missing and the unknown tensors."""
    Saved(tmp_path, "llama", CASES["llama"]["gqa"])
    gpt2 = {"model_type": "gpt2", "vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
    (tmp_path / "config.json").write_text(json.dumps(gpt2))
    with pytest.raises(
        CheckpointError, match=r"it lacks h\.0\.attn\.c_attn\.bias, .* has unknown model\.embed_tokens\.weight"
    ):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "model_type", [["llama"], {"a": 1}, 5, True, "x\n\x1b[31m" * 1000], ids=lambda value: str(value)[:9]
)
def test_an_invalid_model_type_is_refused(model_type: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CheckpointError, match="no architecture") as caught:
        load_pretrained(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_unknown_names_of_tensors_are_printed_escaped_and_shortened(tmp_path: Path) -> None:
    Saved(tmp_path, "gpt2", CASES["gpt2"]["plain"])
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")
    strange = {name: torch.zeros(1) for name in ("evil\n\x1b[31mname", "y" * 100_000)}
    save_file({**tensors, **strange}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has unknown") as caught:
        load_pretrained(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' * 100_000, "[" * 100 + "]" * 100])
def test_a_deeply_nested_config_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="deeper"):
        load_pretrained(tmp_path)
