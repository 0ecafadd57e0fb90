"""Files and directories that appear whole or not at all, whatever happens while they are written.

What is new is written under a temporary name, forced to the disk, and renamed. A process that is killed leaves at
most a temporary (its name has ``.tmp-`` and the process id in it), never half of a file that others would read.
"""

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

MARK = ".tmp-"
ASIDE = "-old"  # ends the temporary name of a directory that is being replaced


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave the old one as it is; OSError where the disk refuses."""
    temporary = path.with_name(f"{path.name}{MARK}{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no directories
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_directory(target: Path, keep: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A temporary directory beside ``target`` that takes its place when the block ends without an error.

    Whoever looks at ``target`` sees the old state or the whole new one. A directory already there is replaced,
    unless ``keep`` says yes to it: then the new one is dropped. After an error no temporary is left.

    Raises:
        OSError: the place cannot be written, or is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _make_temporary(target)
    try:
        yield temporary
        for path in [*(p for p in temporary.rglob("*") if p.is_file()), temporary]:
            flush(path)
        _put(temporary, target, keep)
        flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_temporary(target: Path) -> Path:
    for number in count():
        suffix = f"-{number}" if number else ""
        path = target.with_name(f"{target.name}{MARK}{os.getpid()}{suffix}")
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("unreachable")


def _put(new: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """Rename ``new`` to ``target``; a directory that stands there is moved aside first and then removed."""
    for attempt in range(100):
        try:
            os.rename(new, target)
            return
        except OSError:
            if not target.exists():
                raise
        if keep(target):
            return
        names = (new.with_name(f"{new.name}{ASIDE}{number}") for number in count(attempt))
        off_the_clock = next(name for name in names if not name.exists())  # one may be left that could not be removed
        try:
            os.rename(target, off_the_clock)
        except FileNotFoundError:
            continue  # another process has moved it meanwhile
        try:
            os.rename(new, target)
            return
        except OSError:
            if not target.exists():
                os.rename(off_the_clock, target)  # the old one is better than none
                raise
        finally:
            shutil.rmtree(off_the_clock, ignore_errors=True)
    raise OSError(f"{target} is replaced by other processes again and again")


def remove_stale(parent: Path, seconds: float) -> None:
    """Remove temporaries in a directory that were left behind at least ``seconds`` ago.

    A directory that was moved aside, by a process that was killed before the new one took its place, goes back there.
    """
    for path in parent.glob(f"*{MARK}*"):
        with suppress(FileNotFoundError):  # its owner has just finished
            if time.time() - path.lstat().st_mtime < seconds:
                continue
            target = path.with_name(path.name.partition(MARK)[0])
            if ASIDE in path.name.partition(MARK)[2] and not target.exists():
                os.rename(path, target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold a lock while the block runs: True if it is ours, False if another process has it.

    The system takes it back when its holder ends, in whatever way, so a lock is never stale. The file stays.
    """
    with path.open("a+b") as file:
        try:
            _lock(file.fileno())
        except OSError:
            yield False
        else:
            yield True


def _lock(handle: int) -> None:
    """Lock an open file until it is closed; OSError if it is locked already."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def link(pointer: Path, name: str) -> None:
    """Make ``pointer`` lead to the file or directory ``name`` beside it, at once for every reader.

    It is a symbolic link, or a text file with the name where the system has no links.
    """
    temporary = pointer.with_name(f"{pointer.name}{MARK}{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(name, temporary)
    except (OSError, NotImplementedError):
        write_text(pointer, name)
        return
    os.replace(temporary, pointer)
    flush(pointer.parent)


def resolve_link(path: Path) -> Path:
    """Where a pointer leads: something beside it; any other path as it is."""
    if path.is_symlink():
        return path.parent / os.readlink(path)
    if path.is_file() and path.stat().st_size < 1000:
        with suppress(UnicodeDecodeError):
            name = path.read_text(encoding="utf-8").strip()
            if name not in ("", "..") and Path(name).name == name and (path.parent / name).is_dir():
                return path.parent / name
    return path
