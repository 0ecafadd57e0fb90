"""A disk that is full at any byte: the previous checkpoint stays, and one sentence names the required space."""

import errno
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.core.atomic_files import MARK
from modular_gpt.core.errors import CheckpointError

resource = pytest.importorskip("resource", reason="this system has no limits on the size of files")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Context manager: the operating system refuses to write files larger than ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def changed(model: GPTModel) -> GPTModel:
    with torch.no_grad():
        model.embedding.weight.add_(1)
    return model


@pytest.mark.parametrize("size", [0, 1, 8, 100, 1000, 4096, 10_000, 16_384, 20_000, 30_000])
def test_the_system_refuses_writes_beyond_a_size(size: int, saved: Path, model: GPTModel) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert max(map(len, before.values())) > 30_000, "every limit is to be hit"
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    with largest_file(size), pytest.raises(CheckpointError, match="make room") as caught:
        save_checkpoint(saved, changed(model))
    message = re.search(r"it takes ([\d,]+) bytes", str(caught.value))
    assert message and int(message[1].replace(",", "")) >= needed
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"], "the temporary is removed"
    load_checkpoint(saved)
    save_checkpoint(saved, model)
    assert torch.equal(load_checkpoint(saved).model.embedding.weight, model.embedding.weight)


def test_too_little_space_is_detected_before_writing(
    saved: Path, model: GPTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    monkeypatch.setattr("modular_gpt.checkpoint.native.save_file", None)
    with pytest.raises(CheckpointError, match="the disk is full; it takes"):
        save_checkpoint(saved, model)


@pytest.mark.parametrize("name", ["os.fsync", "os.rename", "os.mkdir"])
@pytest.mark.parametrize("call", range(1, 9))
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
def test_a_call_that_fails(
    name: str, call: int, error: int, saved: Path, model: GPTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The k-th fsync, rename or creation of a directory fails; one valid checkpoint always remains."""
    module, _, function = name.partition(".")
    original, calls = getattr(os, function), 0

    def failing(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(error, os.strerror(error))
        return original(*args, **keywords)

    old = model.embedding.weight.detach().clone()
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{function}", failing)
        try:
            save_checkpoint(saved, changed(model))
            happened = calls >= call
            failed = False
        except CheckpointError as caught:
            happened = failed = True
            assert os.strerror(error) in str(caught)
    weight = load_checkpoint(saved).model.embedding.weight
    if failed:
        assert torch.equal(weight, old) or torch.equal(weight, model.embedding.weight)
    else:
        assert torch.equal(weight, model.embedding.weight)
        assert not happened or name != "os.fsync", "a failure may only pass where it is dealt with"
    assert not list(saved.parent.glob(f"*{MARK}*"))


@pytest.mark.parametrize("name", ["os.unlink", "os.rmdir"])
@pytest.mark.parametrize("call", range(1, 6))
def test_a_removal_that_fails(
    name: str, call: int, saved: Path, model: GPTModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be removed stays; the new checkpoint beside it and the next one are valid."""
    original, calls = getattr(os, name.removeprefix("os.")), 0

    def failing(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(name, failing)
        save_checkpoint(saved, changed(model))
    assert torch.equal(load_checkpoint(saved).model.embedding.weight, model.embedding.weight)
    save_checkpoint(saved, changed(model))
    assert torch.equal(load_checkpoint(saved).model.embedding.weight, model.embedding.weight)


def test_a_path_that_cannot_be_written(tmp_path: Path, model: GPTModel) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot save"):
        save_checkpoint(tmp_path / "file" / "model", model)
