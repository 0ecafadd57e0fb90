"""Round trips of checkpoints; a path without a checkpoint of this package is refused in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint import (
    FOLDER,
    build_model,
    find_checkpoint,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
)
from modular_gpt.core.errors import CheckpointError
from modular_gpt.data import CharTokenizer
from tests.checkpoint.conftest import SMALL

MODELS: list[dict[str, Any]] = [
    {},
    {"attention": "mla", "norm": "rmsnorm", "pos": "rope", "tie_embeddings": False, "head_bias": True},
    {"attention": {"name": "gqa", "sinks": True, "qk_norm": "rmsnorm", "n_kv_heads": 1}, "ffn": "swiglu"},
    {"ffn": {"name": "moe", "balance": "bias", "shared_experts": 1}, "attention": "linear", "pos": "none"},
    {"layers": {"variants": {"local": {"attention": {"name": "swa", "window": 4}}}, "cycle": ["local", "base"]}},
]


@pytest.mark.parametrize("settings", MODELS, ids=str)
def test_a_model_round_trips(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = GPTModel({**SMALL, **settings}).eval()
    for buffer in model.buffers():
        buffer.add_(torch.randn_like(buffer))
    state = torch.get_rng_state()
    loaded, tokenizer, meta = load_checkpoint(save_checkpoint(tmp_path / "model", model, meta={"loss": 1.5}))
    assert torch.equal(torch.get_rng_state(), state), "loading must not change what a program draws next"
    assert tokenizer is None
    assert meta == {"loss": 1.5}
    assert loaded.config == model.config
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.randint(256, (2, 16))
    assert torch.equal(loaded(ids), model(ids))


def test_a_bf16_model_is_loaded_in_bf16(tmp_path: Path) -> None:
    model = GPTModel(SMALL).to(torch.bfloat16)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model", model)).model
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_tokenizer_is_saved_with_the_model(tmp_path: Path, model: GPTModel) -> None:
    tokenizer = CharTokenizer.build_vocab("hé!")
    loaded = load_checkpoint(save_checkpoint(tmp_path / "model", model, tokenizer)).tokenizer
    assert loaded is not None
    assert loaded.fingerprint == tokenizer.fingerprint


def test_further_tensors_round_trip(saved: Path) -> None:
    (tensor,) = read_tensors(saved, "optimizer").values()
    torch.manual_seed(0)
    assert tensor.shape == (64, 64)


def test_saving_again_replaces_the_checkpoint_and_leaves_no_temporary_files(saved: Path, model: GPTModel) -> None:
    with torch.no_grad():
        model.embedding.weight.add_(1)
    save_checkpoint(saved, model)
    loaded, tokenizer, meta = load_checkpoint(saved)
    assert torch.equal(loaded.embedding.weight, model.embedding.weight)
    assert (tokenizer, meta) == (None, {})
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("path", "prefer", "step"),
    [
        ("one", "best", 2),
        ("one", "latest", 3),
        ("latest", "best", 2),
        ("one/checkpoints", "best", 2),
        ("one/checkpoints/best", "latest", 2),
        ("one/checkpoints/latest", "best", 3),
        ("one/checkpoints/step_00000001", "best", 1),
    ],
)
def test_the_checkpoint_that_a_path_resolves_to(run: Path, path: str, prefer: str, step: int) -> None:
    assert find_checkpoint(run.parent / path, prefer).resolve().name == f"step_{step:08}"


def test_a_damaged_checkpoint_of_a_run_falls_back_to_the_newest_valid_one(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / FOLDER / "step_00000002" / "config.json").unlink()
    assert load_checkpoint(run).meta["step"] == 3
    assert "config.json" in caplog.text
    assert "step_00000003' instead" in caplog.text


def test_a_run_without_its_links_loads_the_newest_checkpoint(run: Path) -> None:
    (run / FOLDER / "best").unlink()
    (run / FOLDER / "latest").unlink()
    assert load_checkpoint(run).meta["step"] == 3


def test_no_checkpoint_of_a_run_is_valid(run: Path) -> None:
    for step in (1, 2, 3):
        (run / FOLDER / f"step_{step:08}" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"step_00000002.*model\.safetensors"):
        load_checkpoint(run)


def test_a_checkpoint_named_by_its_path_has_no_fallback(run: Path) -> None:
    (run / FOLDER / "step_00000002" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(run / FOLDER / "step_00000002")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(run / FOLDER / "best")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/two", "there is no checkpoint at .*two.*there are: .*one"),
        ("nowhere/at/all", "train a model first"),
        ("runs/one/checkpoints/step_00000001/model.safetensors", "is a file, and a checkpoint is a directory"),
        ("weights.pt", "is a pickle"),
        ("foreign", "is not a checkpoint of this program: it has no manifest.json"),
        ("started", "is not a checkpoint"),
    ],
)
def test_a_path_without_a_checkpoint_is_refused(run: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.pt").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "started" / FOLDER).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_build_model_needs_no_tokenizer(saved: Path) -> None:
    assert build_model(saved).config.n_layers == 2
