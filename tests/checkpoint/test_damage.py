"""Damaged files are never loaded silently, and no file of a checkpoint can run code."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.checkpoint import MANIFEST, load_checkpoint, verify
from modular_gpt.checkpoint.manifest import seal, write_manifest
from modular_gpt.core.errors import CheckpointError

FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "meta.json", "tokenizer.json", MANIFEST)


def flip(at: float, bit: int) -> Callable[[bytes], bytes]:
    def flipped(data: bytes) -> bytes:
        place = min(int(at * len(data)), len(data) - 1)
        return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]

    return flipped


def cut(at: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(at * len(data))]


def zeros(at: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(at * len(data))] + bytes(4096) + data[int(at * len(data)) + 4096 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    **{f"bit {bit} at {at}": flip(at, bit) for at in (0.0, 0.01, 0.33, 0.5, 0.66, 0.999) for bit in (0, 3, 7)},
    **{f"cut at {at}": cut(at) for at in (0.1, 0.5, 0.9, 0.9999)},
    **{f"zeros at {at}": zeros(at) for at in (0.0, 0.2, 0.5)},
    "longer": lambda data: data + b"\n",
    "empty": lambda data: b"",
    "text": lambda data: b"this is no checkpoint",
    "other encoding": lambda data: data.decode("latin-1").encode("utf-16"),
    "array": lambda data: b"[1, 2, 3]",
    "deep": lambda data: b"[" * 100_000,
}


@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_detected(name: str, saved: Path) -> None:
    path = saved / name
    whole = path.read_bytes()
    for damage_name, damage in DAMAGE.items():
        path.write_bytes(damaged := damage(whole))
        if name == MANIFEST and parsed(damaged) == parsed(whole):
            continue  # white space
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(saved)
        assert name in str(caught.value), damage_name
        assert "\n" not in str(caught.value), damage_name
    path.unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved)
    path.mkdir()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(saved)
    path.rmdir()
    path.write_bytes(whole)
    verify(saved)


def parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data


def forged(saved: Path, name: str, content: bytes) -> None:
    """A forged file, with a manifest that matches it."""
    (saved / name).write_bytes(content)
    (saved / MANIFEST).unlink()
    write_manifest(saved)


def edited(saved: Path, **changes: Any) -> bytes:
    config = json.loads((saved / "config.json").read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for key in path:
            place = place[key]
        place[last] = value
    return json.dumps(config).encode()


TARGET = {"_target_": "os.system", "command": "touch ran"}


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": TARGET},
        {"attention___target_": "os.system"},
        {"ffn___target_": "os.system"},
        {"norm": {"name": "os.system"}},
        {"pos": {"name": "__import__('os')"}},
        {"attention__name": "../../evil"},
        {"_target_": "os.system"},
        {"layers": {"variants": {"x": {"attention": TARGET}}, "cycle": ["x"]}},
        {"layers": TARGET},
        {"init": "__class__"},
        {"component": "os"},
        {"attention__component": "os"},
        {"ffn__activation": "eval"},
        {"d_model": "16; import os"},
        {"d_model": 10**9},
        {"d_model": 2**70},
        {"n_layers": 10**9},
        {"n_layers": 3},
        {"n_layers": 1},
        {"layers": {"prefix": ["base"] * 3}},
        {"pos": "learned", "context_length": 10**12},
        {"vocab_size": 10**12},
        {"n_heads": 0},
        {"d_model": -16},
        {"d_model": True},
        {"dropout": float("nan")},
        {"format": 999},
        {"format": None},
    ],
    ids=str,
)
def test_a_hostile_config_runs_no_code(
    changes: dict[str, Any], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forged(saved, "config.json", edited(saved, **changes))
    with pytest.raises(CheckpointError, match=r"config\.json|model\.safetensors"):
        load_checkpoint(saved)
    assert not (tmp_path / "ran").exists()


def header(size: int, content: bytes = b"") -> bytes:
    return struct.pack("<Q", size) + content


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x09touch ran",
        b"PK\x03\x04",
        header(2**63),
        header(2**62, b"{}"),
        header(99_000_000, b"{"),
        header(2, b"{}"),
        header(9, b'{"a": [1]}'),
        header(4, b"null"),
        b"",
    ],
    ids=repr,
)
def test_hostile_weights_run_no_code_and_fill_no_memory(
    content: bytes, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forged(saved, "model.safetensors", content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_checkpoint(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "..", ".", ""])
def test_a_manifest_reaches_no_other_directory(name: str, saved: Path) -> None:
    (saved.parent / "outside").write_text("secret")
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["files"][name] = {"size": 6, "sha256": "0" * 64}
    manifest["sha256"] = seal(manifest["files"])
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "files",
    [None, [], "x", {"config.json": None}, {"config.json": {}}, {"config.json": {"size": "1", "sha256": 5}}, {}],
    ids=repr,
)
def test_a_manifest_of_another_structure(files: Any, saved: Path) -> None:
    content = {"format": 1, "files": files, "sha256": seal(files)}
    (saved / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "content",
    [
        b'{"modular_gpt_tokenizer": 1, "kind": "os.system", "definition": {}}',
        b"{}",
        b"null",
        b'{"_target_": "os.system"}',
    ],
    ids=repr,
)
def test_a_hostile_tokenizer_runs_no_code(content: bytes, saved: Path) -> None:
    forged(saved, "tokenizer.json", content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_checkpoint(saved)
