"""Directories of runs: each run has one of its own, and one process at a time trains in it."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from modular_gpt.checkpoint import LATEST
from modular_gpt.core.atomic_files import file_lock, link
from modular_gpt.core.errors import ConfigError

LOCK = "lock"  # a file that is held meanwhile

log = logging.getLogger(__name__)


@contextmanager
def only_here(directory: Path | None) -> Iterator[None]:
    """Keep other processes from training in a run's directory meanwhile; ConfigError where one already does."""
    if directory is None:
        yield
        return
    with ExitStack() as held:
        try:
            ours = held.enter_context(file_lock(directory / LOCK))
        except OSError as error:
            raise ConfigError(
                f"the run '{directory}' cannot be written ({error.strerror}): copy it to a folder that you can write,"
                " or start a new run from it with init_from="
            ) from error
        if not ours:
            raise ConfigError(
                f"another process trains in '{directory}': wait for it, or start a new run without resume"
            )
        yield


def new_run_directory(runs: Path, name: str) -> Path:
    """A directory that no other run has, ``<runs>/<date>-<time>-<name>``, to which ``<runs>/latest`` leads."""
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
