"""from_pretrained and load_model open every name, save_pretrained writes every model, and both are inverses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modular_gpt import CheckpointError, ConfigError, GPTModel
from modular_gpt.checkpoint import FOLDER, load_model, save_checkpoint
from modular_gpt.core.atomic_files import link
from modular_gpt.core.registry import entries
from modular_gpt.data import build_tokenizer
from modular_gpt.model.topologies import TOPOLOGIES

SIZES = {"vocab_size": 256, "d_model": 16, "n_heads": 2, "n_layers": 2, "context_length": 16, "init_std": 0.3}
LLAMA = {"bias": False, "ffn": "swiglu", "norm": "rmsnorm", "pos": "rope"}
VARIANTS: list[dict[str, Any]] = [
    *({slot: name} for slot in ("attention", "ffn", "norm", "pos") for name in entries(slot)),
    *({"topology": name} for name in TOPOLOGIES),
    *({**LLAMA, "attention": name} for name in ("mha", "gqa", "mqa", "swa")),
    {"tie_embeddings": False, "head_bias": True, "embed_norm": True, "final_norm": False},
    {"embed_scale": 4.0, "logit_scale": 0.5, "logit_softcap": 3.0, "residual_multiplier": 0.7, "dropout": 0.2},
    {"ffn": {"name": "moe", "balance": "bias", "shared_experts": 1, "groups": 2, "top_groups": 1}},
    {"attention": {"name": "gqa", "n_kv_heads": 1, "sinks": True, "qk_norm": "rmsnorm"}, "pos": "alibi"},
    {
        "layers": {
            "variants": {"local": {"attention": {"name": "swa", "window": 4}}, "state": {"attention": "linear"}},
            "prefix": ["local"],
            "suffix": ["state"],
        }
    },
]


def made(settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> GPTModel:
    model = GPTModel(**{**SIZES, **settings}).to(dtype).eval()
    for name, buffer in model.named_buffers():
        if name in model.state_dict():
            buffer.add_(torch.randn_like(buffer))
    return model


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
@torch.no_grad()
def test_loading_is_the_inverse_of_saving(settings: dict[str, Any], tmp_path: Path) -> None:
    """Config, weights and logits are bitwise equal after saving and loading, in each format that supports the model."""
    model, ids = made(settings), torch.randint(256, (2, 9))
    model.save_pretrained(tmp_path / "auto")
    model.save_pretrained(tmp_path / "own", format="modular_gpt")
    save_checkpoint(tmp_path / "checkpoint", model)
    state = torch.get_rng_state()
    for folder in ("auto", "own", "checkpoint"):
        loaded = GPTModel.from_pretrained(tmp_path / folder)
        assert torch.equal(loaded(ids), model(ids)), folder
        assert not loaded.training
        found = loaded.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items()), folder
        if folder != "auto":  # a published format omits settings that do not change the logits, such as the backend
            assert loaded.config == model.config
    assert torch.equal(torch.get_rng_state(), state), "loading must not change what a program draws next"


@pytest.mark.parametrize("settings", [{}, {"attention": "mla", "ffn": {"name": "moe", "balance": "bias"}}], ids=str)
def test_dtypes_are_kept_or_chosen(settings: dict[str, Any], tmp_path: Path) -> None:
    made(settings, torch.bfloat16).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in GPTModel.from_pretrained(tmp_path).parameters()} == {torch.bfloat16}
    wide = GPTModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {tensor.dtype for tensor in wide.parameters()} == {torch.float32}


def test_every_name_opens_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = made({"attention": "linear"}), build_tokenizer("byte")
    save_checkpoint(Path("runs/one") / FOLDER / "step_00000003", model, tokenizer)
    link(Path("runs/one") / FOLDER / "latest", "step_00000003")
    link(Path("runs/latest"), "one")
    model.save_pretrained("folder")
    names: dict[str | Path, bool] = {
        "runs/one": True,
        Path("runs/one"): True,
        "runs/latest": True,
        "runs/one/checkpoints/latest": True,
        "runs/one/checkpoints/step_00000003": True,
        "folder": False,
        "./folder": False,
        tmp_path / "folder": False,
    }
    for name, with_tokenizer in names.items():
        loaded = load_model(name)
        assert torch.equal(loaded.model.embedding.weight, model.embedding.weight), name
        assert (loaded.tokenizer is not None) == with_tokenizer, name
        assert torch.equal(GPTModel.from_pretrained(name).embedding.weight, model.embedding.weight)


def test_a_checkpoint_is_not_overwritten_by_a_folder(tmp_path: Path) -> None:
    model = made({})
    save_checkpoint(tmp_path / "ours", model)
    with pytest.raises(CheckpointError, match="is a checkpoint of this program"):
        model.save_pretrained(tmp_path / "ours")
    assert torch.equal(load_model(tmp_path / "ours").model.embedding.weight, model.embedding.weight)


def test_a_run_is_not_overwritten_by_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder written into a run would be hidden behind the run's checkpoints."""
    model = made({})
    save_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000001", model)
    with pytest.raises(CheckpointError, match="is a run of this program"):
        model.save_pretrained(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="the path is empty"):
        model.save_pretrained("")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_integer_tensors_are_refused_as_weights(tmp_path: Path) -> None:
    made({}).save_pretrained(tmp_path, format="modular_gpt")
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("embedding.weight"))
    save_file({**tensors, name: tensors[name].long()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embedding\.weight is stored as torch\.int64"):
        load_model(tmp_path)


def test_end_tokens_are_written(tmp_path: Path) -> None:
    for settings in ({"pos": "learned"}, {"attention": "linear"}):
        made(settings).save_pretrained(tmp_path, eos_token_id=[3, 5])
        for name in ("config.json", "generation_config.json"):
            assert json.loads((tmp_path / name).read_text())["eos_token_id"] == [3, 5]


def test_the_former_format_still_works(tmp_path: Path) -> None:
    made({"pos": "learned"}).save_pretrained(tmp_path, format="hf")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    with pytest.raises(ConfigError, match="format"):
        made({}).save_pretrained(tmp_path, format="onnx")


# --- a folder of this package is read only by its config and its safetensors files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made({"attention": "linear"}).save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def changed(folder: Path, name: str = "config.json", **values: Any) -> None:
    content = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize("outside", ["../elsewhere.safetensors", "{tmp}/elsewhere.safetensors", "sub/x.safetensors"])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_reaches_no_other_folder(outside: str, index: str, folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    names = list(made({"attention": "linear"}).state_dict())
    os.rename(weights, tmp_path / "elsewhere.safetensors")
    where = {f"model.{name}": outside.format(tmp=tmp_path) for name in names}
    changed(folder, index, metadata={}, weight_map=where)  # without metadata, transformers fails before it reads
    with pytest.raises(CheckpointError, match="has no file"):
        load_model(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"attn_implementation": "kernels-community/flash-attn"},
        {"_attn_implementation": "evil/kernel@main:fn"},
        {"dtype": "os.system"},
        {"torch_dtype": 5},
        {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        {"training": [1]},
        {"text_config": {"model_type": "llama"}},
        {"architectures": "x"},
    ],
    ids=str,
)
def test_other_settings_have_no_effect(values: dict[str, Any], folder: Path) -> None:
    expected = load_model(folder).model.state_dict()
    changed(folder, **values)
    found = load_model(folder).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_adapter_files_change_nothing(folder: Path) -> None:
    """A complete adapter for each layer, whose effect does not cancel against the zero mean of a norm's output."""
    expected = load_model(folder).model
    adapters = {
        f"base_model.model.model.blocks.{block}.attention.query.lora_{side}.weight": torch.randn(shape)
        for block in range(SIZES["n_layers"])
        for side, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    save_file(adapters, folder / "adapter_model.safetensors")
    changed(folder, "adapter_config.json", peft_type="LORA", r=2, target_modules=["query"], base_model_name_or_path="x")
    found = load_model(folder).model
    assert type(found.blocks[0].attention.query) is torch.nn.Linear  # type: ignore[union-attr]
    assert torch.equal(found(torch.arange(9)[None]), expected(torch.arange(9)[None]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpt": {"n_layers": 10**9}}, "more than the weights"),
        ({"gpt": {"n_layers": 1e300}}, "more than the weights"),
        ({"gpt": {"n_layers": 3}}, "more than the weights"),
        ({"gpt": {"n_layers": 1}}, "nothing for|asks for nothing"),
        ({"gpt": {"d_model": 2**62}}, "does not fit its config"),
        ({"gpt": {"vocab_size": 10**12}}, "does not fit its config"),
        ({"gpt": {"ffn": {"name": "moe", "n_experts": 10**9}}}, "does not fit its config"),
        ({"gpt": None}, "no mapping 'gpt'"),
        ({"gpt": {"attention": {"name": "os.system"}}}, "no attention"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
    ],
    ids=str,
)
def test_settings_that_do_not_match_the_weights_get_one_sentence(
    values: dict[str, Any], message: str, folder: Path
) -> None:
    gpt = json.loads((folder / "config.json").read_text())["gpt"]
    if isinstance(values.get("gpt"), dict):
        values = {"gpt": {**gpt, **values["gpt"]}}
    changed(folder, **values)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_pickle_of_this_package_runs_no_code(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x09touch ran"
    )
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(folder)
    assert not (tmp_path / "ran").exists()
