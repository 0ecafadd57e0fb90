"""Atomic writes: files and directories appear complete or not at all, even if the process is killed while writing.

New content is written under a temporary name, flushed to disk with fsync, and renamed. The temporary name contains
``.tmp-`` and a random token, and is created exclusively, so a symbolic link planted under it is never followed. A
killed process leaves at most such a temporary behind, never an incomplete file under the final name.
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
ASIDE = "-old"  # suffix of the temporary name of a directory that is being replaced
COPIED = "-copied"  # suffix of the new name of a directory found in place of a link
_LOCKED = (errno.EWOULDBLOCK, errno.EACCES)  # errors of locking a file that another process has locked
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)  # errors of rename where the target directory exists


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_name(target: Path) -> Path:
    """A random name in the directory of ``target``, for content that will be renamed to ``target``."""
    return target.with_name(f"{target.name}{MARK}{os.getpid()}-{secrets.token_hex(8)}")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        OSError: it cannot be written; an existing file keeps its content.
    """
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
    """Flush a file, or the entries of a directory, to disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open directories
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_directory(target: Path, keep: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Context manager: yields a temporary directory that is renamed to ``target`` when the block ends without an error.

    Readers of ``target`` see either the old directory or the complete new one. After an error the temporary directory
    is removed.

    keep: given the existing directory, returns whether it stays; then the new one is discarded

    Raises:
        OSError: the directory cannot be written, or the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    temporary.mkdir()
    with _in_use(temporary):
        try:
            yield temporary
            for path in [*(p for p in temporary.rglob("*") if p.is_file()), temporary]:
                fsync(path)
            _replace_directory(temporary, target, keep)
            fsync(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace_directory(new: Path, target: Path, keep: Callable[[Path], bool]) -> None:
    """Rename ``new`` to ``target``; an existing directory is moved aside first and then removed.

    Other processes may do the same concurrently, so ``target`` may appear, vanish or be replaced between any two steps.
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
        set_aside = next(name for name in names if not name.exists())  # an earlier attempt may have left one
        try:
            os.rename(target, set_aside)
        except FileNotFoundError:
            continue  # another process has moved it
        try:
            os.rename(new, target)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED and not target.exists():
                os.rename(set_aside, target)  # restore the old directory
                raise
        finally:
            shutil.rmtree(set_aside, ignore_errors=True)
    raise OSError(f"{target} cannot be replaced: other processes replaced it 100 times meanwhile")


def remove_stale(parent: Path, seconds: float) -> None:
    """Remove temporaries in ``parent`` that were last modified at least ``seconds`` ago.

    A directory of any age that a running process is writing stays. A directory that was moved aside by a process that
    was killed before it put the new one in place gets its name back.
    """
    for path in parent.glob(f"*{MARK}*"):
        with suppress(OSError):  # its owner, or another process here, may remove it at any time
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
    """Context manager: lock a directory. Yields False if another process holds the lock.

    Yields True without a lock where the operating system or file system cannot lock directories.
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
            free = error.errno not in _LOCKED
        yield free
    finally:
        os.close(handle)


@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Context manager: lock the file ``path``, created if missing. Yields False if another process holds the lock.

    The operating system releases the lock when the process ends, also when it is killed, so a lock is never stale. The
    file is not removed.

    Raises:
        OSError: the file cannot be opened for writing.
    """
    with path.open("a+b") as file:
        try:
            _lock(file.fileno())
        except OSError:
            yield False
        else:
            yield True


@contextmanager
def wait_for_lock(path: Path, waiting: Callable[[], None], seconds: float = 0.1) -> Iterator[None]:
    """Context manager: lock the file ``path``, created if missing, once no other process or thread holds the lock.

    On a file system that cannot lock files, the block runs without a lock. The file is not removed.

    waiting: called once if another process or thread holds the lock; seconds: pause between two attempts

    Raises:
        OSError: the file cannot be opened for writing.
    """
    with path.open("a+b") as file:
        for attempt in count():
            try:
                _lock(file.fileno())
            except OSError as error:
                if error.errno in _LOCKED:
                    if not attempt:
                        waiting()
                    time.sleep(seconds)
                    continue
            break
        yield


def _lock(handle: int) -> None:
    """Lock an open file until it is closed. Raises OSError if it is locked already."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def link(pointer: Path, name: str, *, set_aside: bool = False) -> None:
    """Atomically make ``pointer`` refer to the file or directory ``name`` in the same directory.

    It is a symbolic link, or a text file that contains the name where symbolic links are not available.

    set_aside: rename a directory at ``pointer``, left by a copy that followed the link, to ``<pointer>-copied``

    Raises:
        OSError: it cannot be written, or ``pointer`` is a directory and ``set_aside`` is False.
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
    """The target of a pointer written by ``link``; any other path is returned unchanged."""
    if path.is_symlink():
        return path.parent / os.readlink(path)
    if path.is_file() and path.stat().st_size < 1000:
        with suppress(UnicodeDecodeError):
            name = path.read_text(encoding="utf-8").strip()
            if name not in ("", "..") and Path(name).name == name and (path.parent / name).is_dir():
                return path.parent / name
    return path


def write_problem(error: OSError, folder: Path) -> tuple[str, str]:
    """Phrases for the reason of a failed write in ``folder`` ("the disk is full") and for its remedy ("make room")."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.errno == errno.ENOSPC:
        return ("the file system has no inodes left", "remove files there") if _without_inodes(folder) else (
            reason, "make room on that disk")  # fmt: skip
    if error.errno == getattr(errno, "EDQUOT", None):
        return reason, "remove some of your files there, or ask for a larger quota"
    if error.errno == errno.EFBIG:
        return reason, "make room: files there cannot be that large"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return reason, "choose a folder that you can write"
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
        return reason, "choose another folder"
    return reason, "check that disk, or choose a folder elsewhere"


def _without_inodes(folder: Path) -> bool:
    """Whether the file system has free blocks but no free inode."""
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        system = os.statvfs(next(path for path in (folder, *folder.parents) if path.exists()))
        return system.f_files > 0 and system.f_favail == 0 and system.f_bavail > 0
    return False
