"""The cache directory of derived files: token files, learned tokenizers, downloads."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from modular_gpt.core.atomic_files import new_directory, remove_stale, wait_for_lock
from modular_gpt.core.errors import DataError

CACHE = "MODULAR_GPT_CACHE"  # environment: the directory that is used instead of the platform's
LOCKS = "locks"
ABANDONED = 24 * 3600  # seconds after which an unfinished directory of another process is removed

log = logging.getLogger(__name__)


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


@contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Context manager: only one process or thread at a time is in the block for ``target``; others wait.

    The lock is a file in a folder ``locks`` beside the folder of ``target``. Where files cannot be locked, several may
    build the same target.
    """
    path = target.parent.with_name(LOCKS) / f"{target.name}.lock"
    with ExitStack() as stack:
        with suppress(OSError):  # the cache cannot be written, which building reports
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(wait_for_lock(path, lambda: log.info("waiting for another process: %s", target)))
        yield


@contextmanager
def new_in_cache(target: Path, valid: Callable[[Path], bool]) -> Iterator[Path]:
    """Context manager: a temporary directory that becomes ``target`` if the block raises no error.

    If another process has created a ``valid`` directory there meanwhile, it is kept and the new one is removed.

    Raises:
        DataError: the directory cannot be written, or the disk is full.
    """
    try:
        remove_stale(target.parent, ABANDONED)
        with new_directory(target, keep=valid) as new:
            yield new
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write to {target.parent} ({reason}): free some space there or set {CACHE} to another directory"
        ) from error
