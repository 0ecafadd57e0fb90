"""mgpt-convert: to a folder that transformers loads and back, for published architectures and others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.cli import convert, generate
from modular_gpt.data import CharTokenizer, build_tokenizer
from modular_gpt.hf import ModularGPTForCausalLM

META = {"step": 3, "data": {"corpus": "abc123"}}
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"attention": "gqa", "ffn": "swiglu", "norm": "rmsnorm", "pos": "rope", "bias": False},
    "modular_gpt": {"attention": "mla", "pos": "rope"},
}


def checkpoint(path: Path, model_type: str = "modular_gpt", dtype: torch.dtype = torch.float32) -> Path:
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=256,
        d_model=32,
        n_heads=4,
        n_layers=2,
        context_length=40,
        init_std=0.3,
        **{"pos": "learned", **SETTINGS[model_type]},
    )
    return save_checkpoint(path / "small", GPTModel(config).to(dtype), build_tokenizer("byte"), meta=META)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model(torch.arange(20)[None])
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("model_type", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_conversion_round_trips(
    tmp_path: Path, model_type: str, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    source, folder, converted = checkpoint(tmp_path, model_type, dtype), tmp_path / "hf", tmp_path / "converted"
    assert convert.main([f"checkpoint={source}", f"path={folder}"]) == 0
    assert f"a {model_type} model" in capsys.readouterr().out
    expected = load_checkpoint(source)
    published = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(published, ModularGPTForCausalLM) == (model_type == "modular_gpt")
    tolerance = 2e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits(published), logits(expected.model), atol=tolerance, rtol=tolerance)
    assert AutoTokenizer.from_pretrained(folder)("héllo")["input_ids"] == list("héllo".encode())
    assert "abc123" in (folder / "README.md").read_text()
    assert convert.main([f"checkpoint={folder}", "to=checkpoint", f"path={converted}"]) == 0
    actual = load_checkpoint(converted)
    assert torch.equal(logits(actual.model), logits(expected.model))
    assert actual.meta == META and actual.tokenizer is not None
    assert actual.tokenizer.fingerprint == build_tokenizer("byte").fingerprint
    if model_type == "modular_gpt":
        assert actual.model.config == expected.model.config


def test_the_dtype_changes_on_request(tmp_path: Path) -> None:
    source, folder = checkpoint(tmp_path), tmp_path / "hf"
    assert convert.main([f"checkpoint={source}", f"path={folder}", "dtype=bf16", "format=modular_gpt"]) == 0
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


def test_mgpt_generate_reads_the_converted_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = checkpoint(tmp_path), tmp_path / "hf"
    convert.main([f"checkpoint={source}", f"path={folder}"])
    texts = []
    for path in (source, folder):
        capsys.readouterr()
        assert generate.main([f"checkpoint={path}", "prompt=abc", "max_new_tokens=9", "greedy=true", "json=true"]) == 0
        texts.append(json.loads(capsys.readouterr().out.splitlines()[0])["text"])
    assert texts[0] == texts[1]


def test_a_published_model_is_converted_to_a_checkpoint(tmp_path: Path) -> None:
    from transformers import GPT2Config

    config = GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=4, n_positions=20)
    published = GPT2LMHeadModel(config).eval()
    published.save_pretrained(tmp_path / "published")
    assert convert.main([f"checkpoint={tmp_path / 'published'}", "to=checkpoint", f"path={tmp_path / 'small'}"]) == 0
    found = load_checkpoint(tmp_path / "small")
    torch.testing.assert_close(logits(found.model), logits(published), atol=2e-5, rtol=2e-5)
    assert found.tokenizer is None and "published" in found.meta["converted_from"]


def test_a_tokenizer_without_counterpart_is_kept_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = CharTokenizer.build_vocab("abc")
    model = GPTModel(GPTConfig(vocab_size=3, d_model=8, n_heads=2, n_layers=1, context_length=8))
    source = save_checkpoint(tmp_path / "small", model, tokenizer)
    monkeypatch.setattr(CharTokenizer, "name", "unheard")
    assert convert.main([f"checkpoint={source}", f"path={tmp_path / 'hf'}"]) == 2  # its file cannot be read, either
    monkeypatch.undo()
    assert convert.main([f"checkpoint={source}", f"path={tmp_path / 'hf'}"]) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("cab")["input_ids"] == tokenizer.encode("cab")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["path={tmp}/small"], "exists already"),
        ([], "give path="),
        (["path={tmp}/x", "format=family"], "no published family computes the same"),
        (["path={tmp}/x", "to=onnx"], "no choice 'onnx'"),
        (["path={tmp}/x", "to=checkpoint", "format=family"], "format=family is for to=hf"),
        (["path={tmp}/x", "dtype=int8"], "no choice 'int8'"),
        (["path={tmp}/x", "checkpoint={tmp}/none"], "there is no checkpoint"),
        (["path={tmp}/small/config.json/x"], "cannot write"),
    ],
)
def test_mistakes_get_one_sentence(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert convert.main([f"checkpoint={source}", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("damage", ["truncated", "missing", "config"])
def test_a_damaged_folder_gets_one_sentence(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = checkpoint(tmp_path), tmp_path / "hf"
    convert.main([f"checkpoint={source}", f"path={folder}"])
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif damage == "missing":
        weights.unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        config["gpt"]["attention"]["name"] = "mlaa"
        (folder / "config.json").write_text(json.dumps(config))
    assert convert.main([f"checkpoint={folder}", "to=checkpoint", f"path={tmp_path / 'converted'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "converted").exists()
