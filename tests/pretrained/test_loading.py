"""What is read from files: all of it, one tensor at a time, or one sentence that says what is wrong."""

import json
import os
import struct
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modular_gpt import CheckpointError, GPTModel
from modular_gpt.pretrained import load_pretrained, tokenizer_file
from modular_gpt.weights.hub import SHORT_NAMES
from modular_gpt.weights.tensor_files import SafeTensors
from tests.pretrained.conftest import Saved
from tests.reference.cases import CASES, DELTA, SIZES, ids
from tests.reference.conftest import difference
from tests.reference.published import loaded_by_transformers

WEIGHTS = "model.safetensors"


def refusal(name_or_path: str | Path) -> str:
    """The sentence with which a model is refused."""
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(name_or_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a saved model."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)


def same(ours: GPTModel, saved: Saved) -> bool:
    tokens = ids(ours.config.vocab_size)
    with torch.no_grad():
        return difference(ours(tokens), saved.model(tokens).logits) < 2e-5


# --- what is accepted


def test_method_of_the_model(gpt2: Saved) -> None:
    model = GPTModel.from_pretrained(gpt2.folder)
    assert not model.training and same(model, gpt2)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_path_as_text(gpt2: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(load_pretrained(str(gpt2.folder)), gpt2)
    monkeypatch.chdir(gpt2.folder.parent)
    assert same(load_pretrained("gpt2"), gpt2)  # a folder of that name comes before the hub


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype(gpt2: Saved, dtype: torch.dtype) -> None:
    model = load_pretrained(gpt2.folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(ids(61)).dtype == dtype


def test_dtype_of_the_file(gpt2: Saved) -> None:
    gpt2.model.bfloat16().save_pretrained(gpt2.folder)
    assert {p.dtype for p in load_pretrained(gpt2.folder).parameters()} == {torch.bfloat16}


def test_what_chooses_experts_stays_in_float32(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "deepseek_v3", CASES["deepseek_v3"]["groups"])
    buffers = dict(load_pretrained(tmp_path, dtype=torch.bfloat16).named_buffers())
    theirs = saved.model.model.layers[1].mlp.gate.e_score_correction_bias
    assert torch.equal(buffers["blocks.1.ffn.select_bias"], theirs)
    assert buffers["blocks.1.ffn.load"].eq(0).all()


def test_convolutions_cut_elsewhere(tmp_path: Path) -> None:
    """transformers saves the kernels of OLMo's convolutions in equal thirds; other files have as many as channels."""
    saved = Saved(tmp_path, "olmo_hybrid", {**SIZES, **DELTA})
    names = [f"model.layers.0.linear_attn.{one}_conv1d.weight" for one in "qkv"]
    assert [len(load_file(tmp_path / WEIGHTS)[name]) for name in names] == [19, 19, 18]
    ours, tokens = load_pretrained(tmp_path), ids(61)
    with torch.no_grad():
        assert difference(ours(tokens), saved.model(tokens).logits) < 3e-4
    ours.save_pretrained(tmp_path / "ours", model_type="olmo_hybrid")
    assert [len(load_file(tmp_path / "ours" / WEIGHTS)[name]) for name in names] == [16, 16, 24]
    with torch.no_grad():
        assert torch.equal(loaded_by_transformers(tmp_path / "ours")(tokens).logits, saved.model(tokens).logits)


def test_several_files(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "llama", CASES["llama"]["gqa"], max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same(load_pretrained(tmp_path), saved)


@pytest.mark.parametrize("archive", [True, False])
def test_old_files(gpt2: Saved, archive: bool) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    path = gpt2.folder / "pytorch_model.bin"
    torch.save(gpt2.model.state_dict(), path, _use_new_zipfile_serialization=archive)  # with the tied head in it
    assert same(load_pretrained(gpt2.folder), gpt2)


def test_several_old_files(gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    halves: list[dict[str, Tensor]] = [{}, {}]
    for index, (key, tensor) in enumerate(gpt2.model.state_dict().items()):
        halves[index % 2][key] = tensor
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, gpt2.folder / name)
    where = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (gpt2.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert same(load_pretrained(gpt2.folder), gpt2)


def test_without_prefix_and_with_masks(gpt2: Saved) -> None:
    """As the first GPT-2 files are: saved without the head, and with the causal mask as a table."""

    def change(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(gpt2.folder, change)
    assert same(load_pretrained(gpt2.folder), gpt2)


def test_frequencies_and_further_heads_are_ignored(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "deepseek_v3", CASES["deepseek_v3"]["groups"])
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.3.eh_proj.weight": torch.ones(4, 4),  # the layer that predicts a further token
    }
    rewrite(tmp_path, lambda tensors: tensors.update(extra))
    assert same(load_pretrained(tmp_path), saved)


def test_one_tensor_at_a_time(gpt2: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the model itself no more than one tensor of the file is ever held."""
    seen: list[weakref.ref[Tensor]] = []
    read = SafeTensors.tensor

    def watched(self: SafeTensors, key: str) -> Tensor:
        assert all(ref() is None for ref in seen), "the tensor before is still held"
        tensor = read(self, key)
        seen.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafeTensors, "tensor", watched)
    assert same(load_pretrained(gpt2.folder), gpt2)
    assert len(seen) >= len(load_file(gpt2.folder / WEIGHTS))


def test_the_file_may_be_overwritten_after_loading(gpt2: Saved) -> None:
    """Nothing of the model lies in the mapped file."""
    model = load_pretrained(gpt2.folder)
    size = (gpt2.folder / WEIGHTS).stat().st_size
    with (gpt2.folder / WEIGHTS).open("r+b") as file:
        file.write(b"\xff" * size)
    assert same(model, gpt2)


# --- from the cache of the hub


def cached(root: Path, repository: str, saved: Saved) -> None:
    """Put a model where huggingface_hub keeps what it has downloaded."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots").mkdir()
    os.rename(saved.folder, folder / "snapshots" / "0123abc")


@pytest.mark.parametrize("repository", ["gpt2", SHORT_NAMES["gpt2"]])
def test_from_the_local_cache(repository: str, gpt2: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the hub, kept under the short or the full name, are used without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (gpt2.folder / "tokenizer.json").write_text("{}")
    cached(tmp_path / "hub", repository, gpt2)
    assert same(load_pretrained("gpt2"), gpt2)
    found = tokenizer_file("gpt2")
    assert found is not None and found.read_text() == "{}"


def test_several_files_from_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can be asked for a model.safetensors that does not exist."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    saved = Saved(tmp_path / "model", "llama", CASES["llama"]["gqa"], max_shard_size="20KB")
    cached(tmp_path / "hub", "some/llama", saved)
    assert same(load_pretrained("some/llama"), saved)


class Answer:
    """What the hub says, in place of a download."""

    status_code = 404
    headers: Mapping[str, str] = {}
    request = None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("RepositoryNotFoundError", "there is no model 'some/name'"),
        ("GatedRepoError", "is a gated model: accept its agreement"),
        ("RemoteEntryNotFoundError", "has no config.json"),
        ("OfflineModeIsEnabled", "cannot be reached"),
    ],
)
def test_what_the_hub_may_say(error: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.errors as errors

    def download(*_: Any, **__: Any) -> None:
        kind = getattr(errors, error)
        raise kind("no", response=Answer()) if issubclass(kind, errors.HfHubHTTPError) else kind("no")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert words in refusal("some/name")


def test_downloaded_from_the_hub(gpt2: Saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files are asked for one by one, those of a short name under its full one."""
    asked: list[tuple[str, str, str | None]] = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(gpt2.folder / name)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same(load_pretrained("gpt2"), gpt2)
    assert asked == [("openai-community/gpt2", name, None) for name in ("config.json", WEIGHTS)]


def test_neither_cache_nor_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("gpt2", "someone/something"):
        sentence = refusal(name)
        assert f"'{name}'" in sentence and "cannot be reached" in sentence and "give the folder" in sentence


def test_tokenizer_of_a_folder(gpt2: Saved) -> None:
    assert tokenizer_file(gpt2.folder) is None
    (gpt2.folder / "tokenizer.json").write_text("{}")
    assert tokenizer_file(gpt2.folder) == gpt2.folder / "tokenizer.json"


# --- what is refused


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", Path("nowhere")])
def test_no_folder(name: str | Path) -> None:
    assert "there is no folder" in refusal(name)


def test_no_model_in_the_folder(tmp_path: Path) -> None:
    assert "has no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "has no config.json" in refusal(tmp_path / "config.json")


def test_no_name() -> None:
    assert "neither a folder nor a name" in refusal("what is this?")


def test_no_weights(gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    assert "has neither model.safetensors nor pytorch_model.bin" in refusal(gpt2.folder)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\udcff"])
def test_damaged_config(content: str, gpt2: Saved) -> None:
    (gpt2.folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "config.json" in refusal(gpt2.folder)


def test_missing_and_unknown_tensors_are_listed(gpt2: Saved) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weightt"] = tensors.pop("transformer.h.1.mlp.c_fc.weight")
        del tensors["transformer.ln_f.bias"]

    rewrite(gpt2.folder, change)
    sentence = refusal(gpt2.folder)
    assert "lacks transformer.h.1.mlp.c_fc.weight, transformer.ln_f.bias and" in sentence
    assert "has unknown transformer.h.1.mlp.c_fc.weightt" in sentence


def test_a_list_stays_readable(gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({f"extra.{i}": torch.ones(1) for i in range(500)}))
    sentence = refusal(gpt2.folder)
    assert "and 480 more" in sentence and len(sentence) < 1000


def test_a_layer_too_many(gpt2: Saved) -> None:
    config = json.loads((gpt2.folder / "config.json").read_text())
    (gpt2.folder / "config.json").write_text(json.dumps({**config, "n_layer": 2}))
    assert "has unknown transformer.h.2." in refusal(gpt2.folder)


@pytest.mark.parametrize(
    ("key", "shape", "expected"),
    [
        ("transformer.h.0.attn.c_attn.weight", [32, 95], [32, 96]),
        ("transformer.h.2.attn.c_attn.bias", [97], [96]),
        ("transformer.wte.weight", [60, 32], [61, 32]),
        ("transformer.h.1.mlp.c_fc.weight", [128, 32], [32, 128]),
        ("transformer.ln_f.weight", [], [32]),
    ],
)
def test_another_shape_names_the_tensor(key: str, shape: list[int], expected: list[int], gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({key: torch.ones(shape)}))
    assert f"'{key}' has the shape {shape}, but config.json asks for {expected}" in refusal(gpt2.folder)


def test_shape_of_one_expert(tmp_path: Path) -> None:
    Saved(tmp_path, "mixtral", CASES["mixtral"]["top 2"])
    key = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({key: torch.ones(32, 43)}))
    assert f"'{key}' has the shape [32, 43], but config.json asks for [32, 44]" in refusal(tmp_path)


def test_a_head_that_is_not_the_embedding(gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    assert same(load_pretrained(gpt2.folder), gpt2)
    rewrite(gpt2.folder, lambda tensors: tensors["lm_head.weight"].add_(1e-3))
    assert "'lm_head.weight' differs" in refusal(gpt2.folder)


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-100],
    "cut in the header": lambda content: content[:50],
    "no header": lambda content: b"x" * len(content),
    "endless header": lambda content: header(content[8:], 2**60),
    "header is no JSON": lambda content: header(b"{not json}") + content,
    "offsets past the end": lambda content: header(
        b'{"transformer.wte.weight":{"dtype":"F32","shape":[61,32],"data_offsets":[0,999999999]}}'
    ),
    "a web page": lambda content: b"<html>not found</html>" * 10,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_safetensors(damage: str, gpt2: Saved) -> None:
    path = gpt2.folder / WEIGHTS
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    sentence = refusal(gpt2.folder)
    assert str(path) in sentence and "damaged or incomplete" in sentence


def test_integers_are_no_weights(gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({k: t.to(torch.int8) for k, t in tensors.items()}))
    assert "torch.int8" in refusal(gpt2.folder)


class Malicious:
    """Unpickled by a careless program, this writes a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_an_old_file_never_runs(archive: bool, gpt2: Saved, tmp_path: Path) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    victim, path = tmp_path / "victim", gpt2.folder / "pytorch_model.bin"
    torch.save({"x": Malicious(victim)}, path, _use_new_zipfile_serialization=archive)
    assert "could run code" in refusal(gpt2.folder)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the file is as dangerous as it is meant to be
    assert victim.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3)])
def test_an_old_file_of_something_else(content: Any, gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    torch.save(content, gpt2.folder / "pytorch_model.bin")
    assert "does not hold tensors by name" in refusal(gpt2.folder)


@pytest.mark.parametrize("cut", [0, 10, 5000])
def test_an_old_file_cut_short(cut: int, gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    path = gpt2.folder / "pytorch_model.bin"
    torch.save(gpt2.model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    assert str(path) in refusal(gpt2.folder)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "has no weight_map"),
        ({"weight_map": {"a": "gone.safetensors"}}, "has no file 'gone.safetensors'"),
        ({"weight_map": {"a": "../elsewhere/model.safetensors"}}, "has no file '../elsewhere/model.safetensors'"),
        ({"weight_map": {"a": "part.safetensors"}}, "lack tensors that model.safetensors.index.json names: a"),
    ],
)
def test_damaged_index(index: dict[str, Any], words: str, gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).rename(gpt2.folder / "part.safetensors")
    (gpt2.folder.parent / "elsewhere").mkdir()
    save_file({"a": torch.ones(1)}, gpt2.folder.parent / "elsewhere" / WEIGHTS)
    (gpt2.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert words in refusal(gpt2.folder)
