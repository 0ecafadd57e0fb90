"""Loading published models from folders and from the hub, and the messages about files that are refused."""

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
from tests.reference.model_pairs import loaded_by_transformers

WEIGHTS = "model.safetensors"


def error_message(name_or_path: str | Path) -> str:
    """Return the message of the error that loading a model raises, one sentence."""
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(name_or_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a saved model."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)


def same_logits(model: GPTModel, saved: Saved) -> bool:
    tokens = ids(model.config.vocab_size)
    with torch.no_grad():
        return difference(model(tokens), saved.model(tokens).logits) < 2e-5


# --- accepted files


def test_from_pretrained_gives_a_trainable_model_in_evaluation_mode(gpt2: Saved) -> None:
    model = GPTModel.from_pretrained(gpt2.folder)
    assert not model.training and same_logits(model, gpt2)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_path_may_be_a_string(gpt2: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_logits(load_pretrained(str(gpt2.folder)), gpt2)
    monkeypatch.chdir(gpt2.folder.parent)
    assert same_logits(load_pretrained("gpt2"), gpt2)  # a folder of that name has precedence over the hub


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_loaded_in_the_requested_dtype(gpt2: Saved, dtype: torch.dtype) -> None:
    model = load_pretrained(gpt2.folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(ids(61)).dtype == dtype


def test_the_default_dtype_is_that_of_the_file(gpt2: Saved) -> None:
    gpt2.model.bfloat16().save_pretrained(gpt2.folder)
    assert {p.dtype for p in load_pretrained(gpt2.folder).parameters()} == {torch.bfloat16}


def test_buffers_of_expert_selection_stay_in_float32(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "deepseek_v3", CASES["deepseek_v3"]["groups"])
    buffers = dict(load_pretrained(tmp_path, dtype=torch.bfloat16).named_buffers())
    hf_bias = saved.model.model.layers[1].mlp.gate.e_score_correction_bias
    assert torch.equal(buffers["blocks.1.ffn.select_bias"], hf_bias)
    assert buffers["blocks.1.ffn.load"].eq(0).all()


def test_convolution_kernels_split_into_equal_thirds_are_read(tmp_path: Path) -> None:
    """transformers splits the kernels of OLMo's convolutions into equal thirds; other files split them by channels."""
    saved = Saved(tmp_path, "olmo_hybrid", {**SIZES, **DELTA})
    names = [f"model.layers.0.linear_attn.{projection}_conv1d.weight" for projection in "qkv"]
    assert [len(load_file(tmp_path / WEIGHTS)[name]) for name in names] == [19, 19, 18]
    model, tokens = load_pretrained(tmp_path), ids(61)
    with torch.no_grad():
        assert difference(model(tokens), saved.model(tokens).logits) < 3e-4
    model.save_pretrained(tmp_path / "written", model_type="olmo_hybrid")
    assert [len(load_file(tmp_path / "written" / WEIGHTS)[name]) for name in names] == [16, 16, 24]
    with torch.no_grad():
        assert torch.equal(loaded_by_transformers(tmp_path / "written")(tokens).logits, saved.model(tokens).logits)


def test_sharded_files_are_read(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "llama", CASES["llama"]["gqa"], max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert same_logits(load_pretrained(tmp_path), saved)


@pytest.mark.parametrize("archive", [True, False])
def test_pickled_weights_are_read(gpt2: Saved, archive: bool) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    path = gpt2.folder / "pytorch_model.bin"
    torch.save(gpt2.model.state_dict(), path, _use_new_zipfile_serialization=archive)  # contains the tied head
    assert same_logits(load_pretrained(gpt2.folder), gpt2)


def test_sharded_pickled_weights_are_read(gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    halves: list[dict[str, Tensor]] = [{}, {}]
    for index, (key, tensor) in enumerate(gpt2.model.state_dict().items()):
        halves[index % 2][key] = tensor
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, gpt2.folder / name)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (gpt2.folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_logits(load_pretrained(gpt2.folder), gpt2)


def test_gpt2_files_without_prefix_and_with_causal_masks_are_read(gpt2: Saved) -> None:
    """The first GPT-2 files were saved without the language-model head, and have the causal mask as a tensor."""

    def change(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        for layer in range(3):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    rewrite(gpt2.folder, change)
    assert same_logits(load_pretrained(gpt2.folder), gpt2)


def test_rotary_frequencies_and_prediction_layers_are_ignored(tmp_path: Path) -> None:
    saved = Saved(tmp_path, "deepseek_v3", CASES["deepseek_v3"]["groups"])
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.3.eh_proj.weight": torch.ones(4, 4),  # of the layer for multi-token prediction
    }
    rewrite(tmp_path, lambda tensors: tensors.update(extra))
    assert same_logits(load_pretrained(tmp_path), saved)


def test_at_most_one_tensor_of_a_file_is_held(gpt2: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading holds at most one tensor of the file at a time, besides the model."""
    seen: list[weakref.ref[Tensor]] = []
    read = SafeTensors.tensor

    def watched(self: SafeTensors, key: str) -> Tensor:
        assert all(ref() is None for ref in seen), "the previous tensor is still held"
        tensor = read(self, key)
        seen.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafeTensors, "tensor", watched)
    assert same_logits(load_pretrained(gpt2.folder), gpt2)
    assert len(seen) >= len(load_file(gpt2.folder / WEIGHTS))


def test_the_file_may_be_overwritten_after_loading(gpt2: Saved) -> None:
    """No tensor of the model shares memory with the mapped file."""
    model = load_pretrained(gpt2.folder)
    size = (gpt2.folder / WEIGHTS).stat().st_size
    with (gpt2.folder / WEIGHTS).open("r+b") as file:
        file.write(b"\xff" * size)
    assert same_logits(model, gpt2)


# --- the hub and its cache


def move_to_hub_cache(root: Path, repository: str, saved: Saved) -> None:
    """Move a saved model into the cache of huggingface_hub at ``root``."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots").mkdir()
    os.rename(saved.folder, folder / "snapshots" / "0123abc")


@pytest.mark.parametrize("repository", ["gpt2", SHORT_NAMES["gpt2"]])
def test_cached_files_are_used_without_a_network(
    repository: str, gpt2: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache may have the files under the short or the full name of the repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (gpt2.folder / "tokenizer.json").write_text("{}")
    move_to_hub_cache(tmp_path / "hub", repository, gpt2)
    assert same_logits(load_pretrained("gpt2"), gpt2)
    found = tokenizer_file("gpt2")
    assert found is not None and found.read_text() == "{}"


def test_cached_shards_are_used_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cached files have no model.safetensors, and the hub cannot be asked for one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    saved = Saved(tmp_path / "model", "llama", CASES["llama"]["gqa"], max_shard_size="20KB")
    move_to_hub_cache(tmp_path / "hub", "some/llama", saved)
    assert same_logits(load_pretrained("some/llama"), saved)


class NotFoundResponse:
    """An HTTP response of the hub with status 404."""

    status_code = 404
    headers: Mapping[str, str] = {}
    request = None


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "there is no model 'some/name'"),
        ("GatedRepoError", "is a gated model: accept its agreement"),
        ("RemoteEntryNotFoundError", "has no config.json"),
        ("OfflineModeIsEnabled", "cannot be reached"),
    ],
)
def test_errors_of_the_hub_get_one_sentence(
    error: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.errors as errors

    def download(*_: Any, **__: Any) -> None:
        error_class = getattr(errors, error)
        if issubclass(error_class, errors.HfHubHTTPError):
            raise error_class("no", response=NotFoundResponse())
        raise error_class("no")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert message in error_message("some/name")


def test_files_are_downloaded_one_by_one_under_the_full_name(
    gpt2: Saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A short name is replaced by the full name of the repository."""
    requests: list[tuple[str, str, str | None]] = []

    def download(repository: str, name: str, revision: str | None) -> str:
        requests.append((repository, name, revision))
        return str(gpt2.folder / name)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert same_logits(load_pretrained("gpt2"), gpt2)
    assert requests == [("openai-community/gpt2", name, None) for name in ("config.json", WEIGHTS)]


def test_a_model_neither_cached_nor_reachable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("gpt2", "someone/something"):
        message = error_message(name)
        assert f"'{name}'" in message and "cannot be reached" in message and "give the folder" in message


def test_the_tokenizer_file_of_a_folder_is_found(gpt2: Saved) -> None:
    assert tokenizer_file(gpt2.folder) is None
    (gpt2.folder / "tokenizer.json").write_text("{}")
    assert tokenizer_file(gpt2.folder) == gpt2.folder / "tokenizer.json"


# --- refused files


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", Path("nowhere")])
def test_a_missing_folder_is_refused(name: str | Path) -> None:
    assert "there is no folder" in error_message(name)


def test_a_folder_without_config_json_is_refused(tmp_path: Path) -> None:
    assert "has no config.json" in error_message(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "has no config.json" in error_message(tmp_path / "config.json")


def test_a_malformed_name_is_refused() -> None:
    assert "neither a folder nor a name" in error_message("what is this?")


def test_a_folder_without_weights_is_refused(gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    assert "has neither model.safetensors nor pytorch_model.bin" in error_message(gpt2.folder)


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\udcff"])
def test_a_damaged_config_is_refused(content: str, gpt2: Saved) -> None:
    (gpt2.folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert "config.json" in error_message(gpt2.folder)


def test_missing_and_unknown_tensors_are_listed(gpt2: Saved) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.1.mlp.c_fc.weightt"] = tensors.pop("transformer.h.1.mlp.c_fc.weight")
        del tensors["transformer.ln_f.bias"]

    rewrite(gpt2.folder, change)
    message = error_message(gpt2.folder)
    assert "lacks transformer.h.1.mlp.c_fc.weight, transformer.ln_f.bias and" in message
    assert "has unknown transformer.h.1.mlp.c_fc.weightt" in message


def test_a_long_list_of_unknown_tensors_is_shortened(gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({f"extra.{i}": torch.ones(1) for i in range(500)}))
    message = error_message(gpt2.folder)
    assert "and 480 more" in message and len(message) < 1000


def test_tensors_of_a_further_layer_are_refused(gpt2: Saved) -> None:
    config = json.loads((gpt2.folder / "config.json").read_text())
    (gpt2.folder / "config.json").write_text(json.dumps({**config, "n_layer": 2}))
    assert "has unknown transformer.h.2." in error_message(gpt2.folder)


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
def test_a_tensor_of_another_shape_is_named(key: str, shape: list[int], expected: list[int], gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({key: torch.ones(shape)}))
    assert f"'{key}' has the shape {shape}, but config.json asks for {expected}" in error_message(gpt2.folder)


def test_an_expert_of_another_shape_is_named(tmp_path: Path) -> None:
    Saved(tmp_path, "mixtral", CASES["mixtral"]["top 2"])
    key = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({key: torch.ones(32, 43)}))
    assert f"'{key}' has the shape [32, 43], but config.json asks for [32, 44]" in error_message(tmp_path)


def test_a_tied_head_that_differs_from_the_embedding_is_refused(gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    assert same_logits(load_pretrained(gpt2.folder), gpt2)
    rewrite(gpt2.folder, lambda tensors: tensors["lm_head.weight"].add_(1e-3))
    assert "'lm_head.weight' differs" in error_message(gpt2.folder)


def header(text: bytes, length: int | None = None) -> bytes:
    """Return a safetensors header: its length in 8 bytes, by default the true one, and its text."""
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
def test_damaged_safetensors_are_refused(damage: str, gpt2: Saved) -> None:
    path = gpt2.folder / WEIGHTS
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    message = error_message(gpt2.folder)
    assert str(path) in message and "damaged or incomplete" in message


def test_integer_weights_are_refused(gpt2: Saved) -> None:
    rewrite(gpt2.folder, lambda tensors: tensors.update({k: t.to(torch.int8) for k, t in tensors.items()}))
    assert "torch.int8" in error_message(gpt2.folder)


class Malicious:
    """An object that makes the directory ``victim`` when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_pickled_file_is_not_run(archive: bool, gpt2: Saved, tmp_path: Path) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    victim, path = tmp_path / "victim", gpt2.folder / "pytorch_model.bin"
    torch.save({"x": Malicious(victim)}, path, _use_new_zipfile_serialization=archive)
    assert "could run code" in error_message(gpt2.folder)
    assert not victim.exists()
    torch.load(path, weights_only=False)  # the file does run code where it is allowed to
    assert victim.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3)])
def test_a_pickled_file_without_tensors_by_name_is_refused(content: Any, gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    torch.save(content, gpt2.folder / "pytorch_model.bin")
    assert "does not hold tensors by name" in error_message(gpt2.folder)


@pytest.mark.parametrize("cut", [0, 10, 5000])
def test_a_truncated_pickled_file_is_refused(cut: int, gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).unlink()
    path = gpt2.folder / "pytorch_model.bin"
    torch.save(gpt2.model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    assert str(path) in error_message(gpt2.folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": 1}}, "has no weight_map"),
        ({"weight_map": {"a": "gone.safetensors"}}, "has no file 'gone.safetensors'"),
        ({"weight_map": {"a": "../elsewhere/model.safetensors"}}, "has no file '../elsewhere/model.safetensors'"),
        ({"weight_map": {"a": "part.safetensors"}}, "lack tensors that model.safetensors.index.json names: a"),
    ],
)
def test_a_damaged_index_is_refused(index: dict[str, Any], message: str, gpt2: Saved) -> None:
    (gpt2.folder / WEIGHTS).rename(gpt2.folder / "part.safetensors")
    (gpt2.folder.parent / "elsewhere").mkdir()
    save_file({"a": torch.ones(1)}, gpt2.folder.parent / "elsewhere" / WEIGHTS)
    (gpt2.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in error_message(gpt2.folder)
