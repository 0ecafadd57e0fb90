"""Where derived files are kept, and how they get there whole or not at all."""

import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modular_gpt.core.errors import DataError

CACHE = "MODULAR_GPT_CACHE"  # environment: the directory for token files, trained tokenizers and downloads
ABANDONED = 24 * 3600  # seconds after which another process's unfinished directory counts as left behind
MARK = ".tmp-"


def cache_directory() -> Path:
    """The directory named by ``MODULAR_GPT_CACHE``, else ``modular_gpt`` in the platform's user cache."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "modular_gpt"


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_directory(target: Path, valid: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary directory beside ``target`` that takes its place when the block ends without an error.

    Whoever looks at ``target`` sees the old state or the whole new one. When another process has put a
    ``valid`` directory there meanwhile, that one stays and the temporary one is dropped.

    Raises:
        DataError: the place cannot be written or is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        temporary = target.with_name(f"{target.name}{MARK}{os.getpid()}-{secrets.token_hex(4)}")
        temporary.mkdir()  # not tempfile's, which nobody else may read: a cache may be shared
    except OSError as error:
        raise _cannot_write(target.parent, error) from error
    try:
        yield temporary
        _replace(target, temporary, valid)
    except OSError as error:
        raise _cannot_write(target.parent, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(target: Path, new: Path, valid: Callable[[Path], bool]) -> None:
    """Rename ``new`` to ``target``; a directory there that is not valid is moved aside first and removed."""
    for attempt in range(100):
        try:
            os.rename(new, target)
            return
        except OSError:
            if not target.exists():
                raise
            if valid(target):
                return
        aside = new.with_name(f"{new.name}-old{attempt}")
        try:
            os.rename(target, aside)
        except FileNotFoundError:
            continue  # another process moved it first
        shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{target} is replaced by other processes again and again")


def _sweep(parent: Path) -> None:
    """Remove what a process that was killed left unfinished a long time ago."""
    for path in parent.glob(f"*{MARK}*"):
        try:
            if time.time() - path.stat().st_mtime > ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            pass  # its owner has just finished


def _cannot_write(place: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"cannot write to {place} ({reason}): free some space there or set {CACHE} to another directory")
