"""Files and directories that appear whole or not at all, even if the process is killed while it writes them.

New content is written under a temporary name, forced to the disk, and renamed. The temporary name contains ``.tmp-``
and cannot be guessed; it is created exclusively, so no link planted under it is followed. A killed process leaves at
most such a temporary, never half a file under the final name.
"""

import errno
import hashlib
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

MARK = ".tmp-"
ASIDE = "-old"  # ends the temporary name of a directory that is being replaced
COPIED = "-copied"  # ends the new name of a directory that stood where a link belongs
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)  # what rename says of a directory that already stands there


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(target: Path) -> Path:
    """A name beside ``target`` for content that will be renamed to it; nobody can guess it."""
    return target.with_name(f"{target.name}{MARK}{os.getpid()}-{secrets.token_hex(8)}")


def write_text(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it is and raise OSError."""
    temporary = temporary_name(path)
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def fsync(path: Path) -> None:
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

    Readers of ``target`` see the old state or the whole new one. An existing directory is replaced, unless ``keep``
    accepts it: then the new one is dropped. After an error no temporary is left.

    Raises:
        OSError: the place cannot be written, or is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    temporary.mkdir()
    with _in_use(temporary):
        try:
            yield temporary
            for path in [*(p for p in temporary.rglob("*") if p.is_file()), temporary]:
                fsync(path)
            _put(temporary, target, keep)
            fsync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _put(new: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """Rename ``new`` to ``target``; a directory that stands there is moved aside first and then removed.

    Other processes may do the same at the same time, so every step may find ``target`` there, gone, or replaced.
    """
    for attempt in range(100):
        try:
            os.rename(new, target)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED and not target.exists():
                raise
        if keep(target):
            return
        names = (new.with_name(f"{new.name}{ASIDE}{number}") for number in count(attempt))
        set_aside = next(name for name in names if not name.exists())  # one may be left that could not be removed
        try:
            os.rename(target, set_aside)
        except FileNotFoundError:
            continue  # another process has moved it meanwhile
        try:
            os.rename(new, target)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED and not target.exists():
                os.rename(set_aside, target)  # the old one is better than none
                raise
        finally:
            shutil.rmtree(set_aside, ignore_errors=True)
    raise OSError(f"{target} is replaced by other processes again and again")


def remove_stale(parent: Path, seconds: float) -> None:
    """Remove temporaries in a directory that were left behind at least ``seconds`` ago.

    A directory that a process is still writing stays, however old it is. A directory that was moved aside, by a
    process that was killed before the new one took its place, returns to its name.
    """
    for path in parent.glob(f"*{MARK}*"):
        with suppress(OSError):  # its owner, or another cleaner, has just finished with it
            if time.time() - path.lstat().st_mtime < seconds:
                continue
            target = path.with_name(path.name.partition(MARK)[0])
            if path.is_symlink() or not path.is_dir():
                path.unlink()
            elif ASIDE in path.name.partition(MARK)[2] and not target.exists():
                os.rename(path, target)
            else:
                with _in_use(path) as free:
                    if free:
                        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _in_use(directory: Path) -> Iterator[bool]:
    """Hold a lock on a directory while the block runs: False if another process has it.

    True without a lock where the system or the file system has none for directories.
    """
    if sys.platform == "win32":
        yield True
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            _lock(handle)
            free = True
        except OSError as error:
            free = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield free
    finally:
        os.close(handle)


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Hold a lock while the block runs: True if this process got it, False if another process has it.

    The system releases it when its holder ends, in whatever way, so a lock is never stale. The file stays.

    Raises:
        OSError: the file cannot be written.
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


def link(pointer: Path, name: str, *, set_aside: bool = False) -> None:
    """Make ``pointer`` lead to the file or directory ``name`` beside it, at once for every reader.

    It is a symbolic link, or a text file with the name where the system has no links.
    set_aside: a directory that stands at ``pointer``, because a copy followed the link, is renamed to
        ``<pointer>-copied``

    Raises:
        OSError: it cannot be written; a directory stands there and is not to be set aside.
    """
    if set_aside and pointer.is_dir() and not pointer.is_symlink():
        names = (pointer.with_name(f"{pointer.name}{COPIED}{number or ''}") for number in count())
        os.rename(pointer, next(free for free in names if not free.exists()))
    temporary = temporary_name(pointer)
    try:
        os.symlink(name, temporary)
    except (OSError, NotImplementedError):
        write_text(pointer, name)
        return
    try:
        os.replace(temporary, pointer)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync(pointer.parent)


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


def write_problem(error: OSError, folder: Path) -> tuple[str, str]:
    """Two phrases: why a file in a folder could not be written ("the disk is full"), and what helps ("make room")."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENOSPC:
        return ("the file system has no inodes left", "remove files there") if _without_inodes(folder) else (
            reason, "make room on that disk")  # fmt: skip
    if error.errno == getattr(errno, "EDQUOT", None):
        return reason, "remove files of yours there, or ask for a larger quota"
    if error.errno == errno.EFBIG:
        return reason, "make room: files there cannot be that large"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return reason, "choose a folder that you can write"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return reason, "choose another folder"
    return reason, "check that disk, or choose a folder elsewhere"


def _without_inodes(folder: Path) -> bool:
    """Whether the file system has room for data and none for another file."""
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        system = os.statvfs(next(path for path in (folder, *folder.parents) if path.exists()))
        return system.f_files > 0 and system.f_favail == 0 and system.f_bavail > 0
    return False
