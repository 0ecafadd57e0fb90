"""Checkpoints that were copied, repacked or modified: links may have become folders, only listed files are read."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modular_gpt import CheckpointError
from modular_gpt.checkpoint import (
    FOLDER,
    MANIFEST,
    CheckpointReader,
    find_checkpoint,
    load_checkpoint,
    open_checkpoint,
)
from modular_gpt.checkpoint.manifest import seal, write_manifest
from modular_gpt.core import atomic_files
from modular_gpt.core.atomic_files import link, resolve_link
from modular_gpt.data import Tokenizer
from modular_gpt.model.config import GPTConfig


@pytest.mark.parametrize(("prefer", "step"), [("best", 2), ("latest", 3)])
def test_a_copy_with_links_followed_loads_the_same_checkpoints(prefer: str, step: int, run: Path) -> None:
    copy = run.with_name("copy")
    shutil.copytree(run, copy, symlinks=False)
    assert (copy / FOLDER / prefer).is_dir() and not (copy / FOLDER / prefer).is_symlink()
    assert find_checkpoint(copy, prefer).name == f"step_{step:08}"
    for path in (copy / FOLDER).glob("step_*"):
        shutil.rmtree(path)  # only the folders in place of the links were copied
    assert open_checkpoint(copy, prefer).meta["step"] == step


def test_a_link_replaces_a_folder_only_on_request(run: Path) -> None:
    copy = run.with_name("copy")
    shutil.copytree(run, copy, symlinks=False)
    folder = copy / FOLDER
    for number in range(2):
        link(folder / "latest", "step_00000001", set_aside=True)
        assert resolve_link(folder / "latest").name == "step_00000001"
        os.remove(folder / "latest")
        if not number:
            (folder / "latest").mkdir()
    assert load_checkpoint(folder / "latest-copied").meta["step"] == 3
    assert (folder / "latest-copied1").is_dir()
    (folder / "latest").mkdir()
    with pytest.raises(OSError):  # by default a folder is not replaced
        link(folder / "latest", "step_00000001")
    assert not list(folder.glob("*.tmp-*"))


def unlisted(saved: Path, *names: str) -> None:
    """Remove files from a checkpoint's manifest, and seal it again."""
    manifest = json.loads((saved / MANIFEST).read_text())
    for name in names:
        del manifest["files"][name]
    manifest["sha256"] = seal(manifest["files"])
    (saved / MANIFEST).write_text(json.dumps(manifest))


def test_only_listed_files_are_read(saved: Path) -> None:
    unlisted(saved, "optimizer.safetensors", "tokenizer.json")
    stray = {"model/embedding.weight": torch.zeros(256, 16)}
    save_file(stray, saved / "shard-00001-model-00001-of-00001.safetensors")
    reader = open_checkpoint(saved)
    assert reader.tokenizer is None
    assert reader.tensors("optimizer") == {} and reader.tensors("other") == {}
    assert load_checkpoint(saved).tokenizer is None


def test_a_missing_required_set_is_refused(saved: Path) -> None:
    reader = open_checkpoint(saved)
    assert reader.required_tensors("optimizer")
    with pytest.raises(CheckpointError, match=r"has no trained\.safetensors"):
        reader.required_tensors("trained")
    save_file({}, saved / "optimizer.safetensors")
    write_manifest_again(saved)
    with pytest.raises(CheckpointError, match=r"has no optimizer\.safetensors"):
        open_checkpoint(saved).required_tensors("optimizer")


def write_manifest_again(saved: Path) -> None:
    (saved / MANIFEST).unlink()
    write_manifest(saved)


def test_each_file_is_read_once_to_verify_it_and_the_config_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    configs: list[Any] = []
    sha256_file, from_dict, load = atomic_files.sha256_file, GPTConfig.from_dict, Tokenizer.load
    monkeypatch.setattr(
        "modular_gpt.checkpoint.manifest.sha256_file", lambda path: (hashed.append(path.name), sha256_file(path))[1]
    )
    monkeypatch.setattr(GPTConfig, "from_dict", lambda values: (configs.append(values), from_dict(values))[1])
    monkeypatch.setattr(Tokenizer, "load", lambda path: (configs.append(path), load(path))[1])
    reader = open_checkpoint(saved)
    for _ in range(3):
        assert reader.config.n_layers == 2 and reader.meta["step"] == 7 and reader.tokenizer is not None
        reader.model()
        reader.tensors("optimizer")
    assert sorted(hashed) == sorted(reader.files) and len(configs) == 2
    assert CheckpointReader(saved).config == reader.config and len(hashed) == len(reader.files)


# --- pipes and devices in place of files


def within(seconds: float, action: Callable[[], Any]) -> None:
    """Assert that the action ends in time; it runs in a thread, since reading a pipe cannot be interrupted."""
    errors: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it reads without end"
    if errors:
        raise errors[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("name", ["config.json", "meta.json", "tokenizer.json", "model.safetensors", MANIFEST])
@pytest.mark.parametrize("how", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_before_it_is_read(name: str, how: str, saved: Path) -> None:
    (saved / name).unlink()
    if how == "pipe":
        os.mkfifo(saved / name)
    else:
        os.symlink("/dev/zero", saved / name)
    if name != MANIFEST:
        manifest = json.loads((saved / MANIFEST).read_text())
        manifest["files"][name]["size"] = 0
        manifest["sha256"] = seal(manifest["files"])
        (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=name):
        within(60, lambda: load_checkpoint(saved))


@pytest.mark.parametrize("name", ["a\0b", "a\ud800", "a\nb", "\x1b[31mred", "x" * 100_000])
def test_strange_names_in_a_manifest(name: str, saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["files"][name] = {"size": 0, "sha256": "0"}
    manifest["sha256"] = seal(manifest["files"])
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_strange_names_of_tensors(saved: Path) -> None:
    from safetensors.torch import load_file

    for name in ("evil\n\x1b[31mname", "y" * 100_000):
        tensors = load_file(saved / "model.safetensors")
        save_file({**tensors, name: torch.zeros(1)}, saved / "model.safetensors")
        write_manifest_again(saved)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(saved)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_run_without_a_checkpoint_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one" / FOLDER).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="saved none"):
        load_checkpoint(tmp_path / "runs" / "one")
