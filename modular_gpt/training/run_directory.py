"""Run directories: their creation, their lock, and files whose failure to be written does not end the training."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from modular_gpt.checkpoint import LATEST
from modular_gpt.core.atomic_files import file_lock, link, write_text
from modular_gpt.core.errors import ConfigError, first_line

LOCK = "lock"  # a file that is locked while a process trains in the directory

log = logging.getLogger(__name__)


class RunFiles:
    """The files of a run besides its checkpoints. A write that fails is logged once and never ends the training."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unwritten: dict[str, str] = {}
        self._logged: set[str] = set()

    def append(self, name: str, text: str) -> None:
        """Append to a file. Text of a failed write is written with the next one."""
        text = self._unwritten.pop(name, "") + text
        try:
            append_text(self.directory / name, text)
        except OSError as error:
            self._unwritten[name] = text
            self._log(name, error)

    def flush(self) -> None:
        """Try again to write the text that could not be appended."""
        for name in list(self._unwritten):
            self.append(name, "")

    def unwritten(self, name: str) -> str:
        """The text that could not be appended to a file yet."""
        return self._unwritten.get(name, "")

    def replace(self, name: str, text: str) -> None:
        """Write a file, in place of an earlier one."""
        self.attempt(name, lambda: write_text(self.directory / name, text))
        self._unwritten.pop(name, None)

    def attempt(self, name: str, write: Callable[[], object]) -> None:
        """Call ``write``, which writes an output of the run; the first exception for each name is logged."""
        try:
            write()
        except Exception as error:  # of any type, such as from the plotting library or the file system
            self._log(name, error)

    def warn_if_deleted(self) -> None:
        """Log, once, that somebody deleted the directory while the run trains in it."""
        if not self.directory.is_dir() and "" not in self._logged:
            self._logged.add("")
            log.warning(
                "the run directory '%s' was deleted while the run trains in it: its earlier files are lost, and the"
                " next checkpoint makes it again",
                self.directory,
            )

    def _log(self, name: str, error: Exception) -> None:
        self.warn_if_deleted()
        if name not in self._logged and self.directory.is_dir():
            self._logged.add(name)
            log.warning(
                "'%s' cannot be written (%s); the training continues, and later writes are tried",
                self.directory / name,
                getattr(error, "strerror", None) or first_line(error),
            )


def append_text(path: Path, text: str) -> None:
    """Append to a file. Raises an OSError if not all of the text can be written; the file is then unchanged."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        left = memoryview(text.encode())
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


@contextmanager
def lock_run(directory: Path | None) -> Iterator[None]:
    """Context manager: no other process may train in a run directory; None: the run has none yet.

    Raises:
        ConfigError: another process trains there.
    """
    if directory is None:
        yield
        return
    with ExitStack() as held:
        try:
            locked = held.enter_context(file_lock(directory / LOCK))
        except OSError as error:
            raise ConfigError(
                f"the run '{directory}' cannot be written ({error.strerror}): copy it to a folder that you can write,"
                " or start a new run from it with init_from="
            ) from error
        if not locked:
            raise ConfigError(
                f"another process trains in '{directory}': wait for it, or start a new run without resume"
            )
        yield


def new_run_directory(runs: Path, name: str) -> Path:
    """Create the directory of a new run, ``<runs>/<date>-<time>-<name>``, and point ``<runs>/latest`` to it.

    Raises:
        ConfigError: ``runs`` is a file or cannot be written.
    """
    while True:
        directory = runs / f"{datetime.now():%Y%m%d-%H%M%S-%f}-{name}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if runs.is_dir():
                continue  # another run began within this very microsecond
            raise ConfigError(f"runs={runs} is a file; give a directory") from None
        except OSError as error:
            raise ConfigError(f"no run can be started in '{runs}' ({error.strerror}); set runs=<directory>") from error
        break
    try:
        link(runs / LATEST, directory.name)
    except OSError as error:
        log.warning("'%s' could not be set to this run (%s)", runs / LATEST, error.strerror)
    return directory
