"""Location of the files of a published model: in a folder, the local Hugging Face cache, or the hub."""

import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from modular_gpt.core.checkpoint_paths import SHORT_NAMES
from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict

CONFIG_FILE = "config.json"
CONNECT_SECONDS = 3.0  # timeout of the connection to the hub
TOKENIZER = "tokenizer.json"


class Unreachable(CheckpointError):
    """A file is not in the local cache, and the Hugging Face hub cannot be reached."""


@dataclass(frozen=True)
class Source:
    """The files of one model, in a folder or on the hub.

    name: name given by the user, for messages
    folder: folder of the files; None: they are on the hub or in the local cache
    repository, revision: repository on the hub, and commit in the local cache; None: the newest commit
    """

    name: str
    folder: Path | None = None
    repository: str = ""
    revision: str | None = None

    def file(self, name: str) -> Path | None:
        """The local path of a file, downloaded if necessary; None if the model has no such file.

        Raises:
            Unreachable: the file is not in the cache and the hub cannot be reached.
            CheckpointError: the hub has no such model, or denies access.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        return _from_cache(self.repository, name, self.revision) or _from_hub(self, name)

    def json(self, name: str) -> PlainDict | None:
        """Read the object in a JSON file; None if the model has no such file.

        Raises:
            CheckpointError: the file cannot be read, or its value is not an object.
        """
        path = self.file(name)
        if path is None:
            return None
        return load_json_object(path, error=CheckpointError, remedy="copy or download it again")


def locate(name_or_path: str | Path) -> Source:
    """Locate a model: a folder with a config.json, or a name on the hub.

    Raises:
        CheckpointError: ``name_or_path`` is a path without a model.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if (path / CONFIG_FILE).is_file():
        return Source(name, folder=path)
    if path.exists():
        raise CheckpointError(f"'{path}' has no {CONFIG_FILE}; give the folder of a model, or a name such as gpt2")
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"there is no folder '{path}'; give the folder of a model, or a name such as gpt2")
    for repository in (SHORT_NAMES.get(name, name), name):
        cached = _from_cache(repository, CONFIG_FILE, None)
        if cached is not None:
            return Source(name, repository=repository, revision=cached.parent.name)
    return Source(name, repository=SHORT_NAMES.get(name, name))


def tokenizer_file(name_or_path: str | Path) -> Path | None:
    """The path of ``tokenizer.json``, or of ``vocab.json`` if there is a ``merges.txt``; None: the model has neither.

    The files that define special tokens and the chat template are downloaded into the same folder.

    Raises:
        CheckpointError: there is no such model, or the hub cannot be reached.
    """
    source = locate(name_or_path)
    with suppress(Unreachable):
        for name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
            source.file(name)
    if (file := source.file(TOKENIZER)) is not None:
        return file
    vocab, merges = source.file("vocab.json"), source.file("merges.txt")
    return vocab if merges is not None else None


def _from_cache(repository: str, name: str, revision: str | None) -> Path | None:
    """The path of a file in the local cache; None if it is not there.

    Raises:
        CheckpointError: ``repository`` is not a valid name.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError as error:
        raise CheckpointError(
            f"{repository!r} is neither a folder nor a name on the Hugging Face hub; give one of them"
        ) from error
    return Path(path) if isinstance(path, str) else None


def _from_hub(source: Source, name: str) -> Path | None:
    """Download a file; None if the model has no such file. Raises as ``Source.file``."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        if not constants.HF_HUB_OFFLINE:
            _check_reachable(constants.ENDPOINT)
        with _without_retry_log():
            return Path(hf_hub_download(source.repository, name, revision=source.revision))
    except RemoteEntryNotFoundError:
        return None
    except GatedRepoError as error:
        raise CheckpointError(
            f"{source.name!r} is a gated model: accept its agreement on the Hugging Face hub, run `hf auth login`, and"
            " try again"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"there is no model {source.name!r}, neither here nor on the Hugging Face hub") from error
    except Exception as error:  # no network, no access, no space: the transports have no common class of exceptions
        raise Unreachable(
            f"{name} of {source.name!r} is not in the local cache, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); connect once, or give the folder of a copy"
        ) from error


def _check_reachable(endpoint: str) -> None:
    """Raise an OSError within ``CONNECT_SECONDS`` if the hub cannot be reached; with a proxy nothing is checked.

    The hub's client would retry for half a minute.
    """
    if getproxies():
        return
    problem = _connection_problem(endpoint, int(time.monotonic() // 60))
    if problem is not None:
        raise problem


@lru_cache(maxsize=1)
def _connection_problem(endpoint: str, minute: int) -> OSError | None:
    """The error of a connection to the hub, or None; the result is cached for the given minute.

    The connection is made in a thread, since name resolution has no timeout.
    """
    url = urlsplit(endpoint)
    address = url.hostname or endpoint, url.port or (80 if url.scheme == "http" else 443)
    results: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            results.put(None)
        except OSError as error:
            results.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return results.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        return TimeoutError(f"no answer from {address[0]} within {CONNECT_SECONDS:g} seconds")


@contextmanager
def _without_retry_log() -> Iterator[None]:
    """Context manager: suppress the hub client's log messages about retries."""
    logger = logging.getLogger("huggingface_hub.utils._http")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
