"""Atomic writes: files and directories appear complete or not at all."""

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modular_gpt.core import atomic_files
from modular_gpt.core.atomic_files import (
    MARK,
    link,
    new_directory,
    remove_stale,
    resolve_link,
    sha256_file,
    write_problem,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_directory_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_directory(tmp_path / "a") as new:
            (new / "file").write_text(content)
            assert (tmp_path / "a").exists() == (content == "new")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_an_error_leaves_the_old_one(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a") as new:
        (new / "file").write_text("old")
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), new_directory(tmp_path / "a") as new:
            (new / "file").write_text("new")
            raise error
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_an_existing_directory_stays_on_request(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("theirs")
    with new_directory(tmp_path / "a", keep=lambda path: (path / "file").exists()) as new:
        (new / "file").write_text("ours")
    assert (tmp_path / "a" / "file").read_text() == "theirs"
    assert names(tmp_path) == ["a"]


def test_permissions_allow_others_to_read(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a"):
        pass
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_threads_that_replace_each_other(tmp_path: Path) -> None:
    """A reader always sees the complete directory of one writer."""
    errors: list[Exception] = []

    def write(number: int) -> None:
        try:
            for _ in range(10):
                with new_directory(tmp_path / "a", keep=lambda path: (path / "b").is_file()) as new:
                    for name in "ab":
                        (new / name).write_text(str(number))
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    assert (tmp_path / "a" / "a").read_text() == (tmp_path / "a" / "b").read_text()
    assert names(tmp_path) == ["a"]


def test_old_temporaries_are_removed(tmp_path: Path) -> None:
    old, young = tmp_path / f"a{MARK}1", tmp_path / f"b{MARK}2"
    (old / "deep").mkdir(parents=True)
    young.write_text("")
    (tmp_path / "kept").mkdir()
    os.utime(old, (time.time() - 100, time.time() - 100))
    remove_stale(tmp_path, seconds=50)
    assert names(tmp_path) == [young.name, "kept"]
    remove_stale(tmp_path, seconds=0)
    assert names(tmp_path) == ["kept"]


def test_a_directory_that_was_moved_aside_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed between the two renames of a replacement, and no cleanup runs."""
    with new_directory(tmp_path / "a") as new:
        (new / "file").write_text("old")
    rename, calls = os.rename, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 3:
            raise SystemExit
        rename(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        patch.setattr("shutil.rmtree", lambda *args, **keywords: None)
        with pytest.raises(SystemExit), new_directory(tmp_path / "a") as new:
            (new / "file").write_text("new")
    assert not (tmp_path / "a").exists()
    remove_stale(tmp_path, seconds=0)
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("links", [True, False])
def test_a_link_resolves_to_its_last_target(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **keywords: Any) -> None:
        raise OSError

    if not links:
        monkeypatch.setattr(os, "symlink", refuse)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        link(tmp_path / "latest", name)
        assert resolve_link(tmp_path / "latest") == tmp_path / name
    assert names(tmp_path) == ["latest", "one", "two"]
    assert (tmp_path / "latest").is_symlink() == links


def test_a_link_in_a_text_file_stays_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for content in ("../", "..", "/etc", "inside/../..", "", "missing"):
        (tmp_path / "inside" / "latest").write_text(content)
        assert resolve_link(tmp_path / "inside" / "latest") == tmp_path / "inside" / "latest"


def test_paths_that_are_not_links_resolve_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(range(256)))
    for path in (tmp_path, tmp_path / "weights", tmp_path / "missing"):
        assert resolve_link(path) == path


def test_a_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old é")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old é"

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "old é"
    assert names(tmp_path) == ["a"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted link in a shared folder cannot redirect a temporary to another file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "shared"
    folder.mkdir()
    planted = atomic_files.temporary_name(folder / "a")
    assert planted != atomic_files.temporary_name(folder / "a"), "the name can be guessed"
    monkeypatch.setattr(atomic_files, "temporary_name", lambda target: planted)
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_text(folder / "a", "new")
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError), new_directory(folder / "a"):
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["a", "latest"])
def test_the_old_guessable_names_are_not_used(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for suffix in ("", "-1"):
        (tmp_path / f"{name}{MARK}{os.getpid()}{suffix}").symlink_to(victim)
    write_text(tmp_path / "a", "new")
    (tmp_path / "one").mkdir()
    link(tmp_path / "latest", "one")
    assert victim.read_text() == "precious" and (tmp_path / "a").read_text() == "new"


def test_a_directory_being_written_is_not_stale(tmp_path: Path) -> None:
    with new_directory(tmp_path / "a") as new:
        (new / "file").write_text("long work")
        os.utime(new, (time.time() - 10**6, time.time() - 10**6))
        remove_stale(tmp_path, seconds=10)
        assert (new / "file").read_text() == "long work"
    assert names(tmp_path) == ["a"]


def test_a_directory_that_comes_and_goes_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of another process blocks the rename and is gone when it is inspected."""
    rename, calls = os.rename, 0

    def contested(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise OSError(errno.ENOTEMPTY if calls % 2 else errno.ENOENT, "contested")
        rename(source, target)

    monkeypatch.setattr(os, "rename", contested)
    with new_directory(tmp_path / "a", keep=lambda path: path.exists()) as new:
        (new / "file").write_text("new")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "inodes", "reason", "remedy"),
    [
        (errno.ENOSPC, 5, "No space", "make room"),
        (errno.ENOSPC, 0, "no inodes left", "remove files"),
        (errno.EROFS, 5, "Read-only", "choose a folder"),
        (errno.EACCES, 5, "denied", "choose a folder"),
        (errno.EDQUOT, 5, "quota", "quota"),
        (errno.EIO, 5, "error", "check that disk"),
    ],
)
def test_a_full_disk_is_named_only_when_it_is_full(
    number: int, inodes: int, reason: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = SimpleNamespace(f_files=100, f_favail=inodes, f_bavail=10**6)
    monkeypatch.setattr(os, "statvfs", lambda path: system)
    found = write_problem(OSError(number, os.strerror(number)), tmp_path / "not" / "made")
    assert reason in found[0] and remedy in found[1]
    assert ("make room" in found[1]) == (number == errno.ENOSPC and inodes > 0)
