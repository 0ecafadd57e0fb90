"""Where the files of a published model are: a folder, the local Hugging Face cache, or the hub."""

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
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from modular_gpt.core.errors import CheckpointError
from modular_gpt.core.json_files import load_json_object

CONFIG_FILE = "config.json"
CONNECT_SECONDS = 3.0  # to reach the hub before it is given up
TOKENIZER = "tokenizer.json"
SHORT_NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}


class Unreachable(CheckpointError):
    """A file is not in the local cache, and the hub cannot be asked whether it exists."""


@dataclass(frozen=True)
class Source:
    """The files of one model.

    name: as the user gave it; folder: where they are, or None where they come from the hub
    repository, revision: on the hub; the revision that the local cache has, or the newest
    """

    name: str
    folder: Path | None = None
    repository: str = ""
    revision: str | None = None

    def file(self, name: str) -> Path | None:
        """The path of a file, downloaded where needed; None where the model has no such file.

        Raises:
            Unreachable: the file is not here and the hub cannot be reached.
            CheckpointError: the hub has no such model, or does not give it.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        return _from_cache(self.repository, name, self.revision) or _from_hub(self, name)

    def json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if the model has no such file.

        Raises:
            CheckpointError: it cannot be read, or holds no object.
        """
        path = self.file(name)
        if path is None:
            return None
        return load_json_object(path, error=CheckpointError, remedy="copy or download it again")


def locate(name_or_path: str | Path) -> Source:
    """The source that a user means: a folder with a config.json, or a name on the hub.

    Raises:
        CheckpointError: it looks like a path, but no model is there.
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
    """The ``tokenizer.json`` of a published model, or its ``vocab.json`` beside a ``merges.txt``; None for neither.

    The files that name its special tokens lie in the same folder.

    Raises:
        CheckpointError: there is no such model, or the hub cannot be reached.
    """
    source = locate(name_or_path)
    with suppress(Unreachable):  # they name special tokens, and are looked for beside the tokenizer
        for name in ("tokenizer_config.json", "generation_config.json"):
            source.file(name)
    if (file := source.file(TOKENIZER)) is not None:
        return file
    vocab, merges = source.file("vocab.json"), source.file("merges.txt")
    return vocab if merges is not None else None


def _from_cache(repository: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, name, revision=revision)
    except HFValidationError as error:
        raise CheckpointError(
            f"{repository!r} is neither a folder nor a name on the Hugging Face hub; give one of them"
        ) from error
    return Path(found) if isinstance(found, str) else None


def _from_hub(source: Source, name: str) -> Path | None:
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
            f"{source.name!r} asks for an agreement on its page at the Hugging Face hub; accept it, "
            "run `hf auth login`, and try again"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"there is no model {source.name!r}, neither here nor on the Hugging Face hub") from error
    except Exception as error:  # no network, no access, no space: as many classes as transports
        raise Unreachable(
            f"{name} of {source.name!r} is not in the local cache, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); connect once, or give the folder of a copy"
        ) from error


def _check_reachable(endpoint: str) -> None:
    """Raise an OSError, within seconds, if no connection to the hub can be made.

    The hub's own client tries again and again for half a minute. A proxy is left to that client.
    """
    if getproxies():
        return
    problem = _connection_problem(endpoint, int(time.monotonic() // 60))
    if problem is not None:
        raise problem


@lru_cache(maxsize=1)
def _connection_problem(endpoint: str, minute: int) -> OSError | None:
    """Why no connection can be made, asked once a minute; in a thread, since a name lookup has no time limit."""
    parts = urlsplit(endpoint)
    address = parts.hostname or endpoint, parts.port or (80 if parts.scheme == "http" else 443)
    answers: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            answers.put(None)
        except OSError as error:
            answers.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        return TimeoutError(f"no answer from {address[0]} within {CONNECT_SECONDS:g} seconds")


@contextmanager
def _without_retry_log() -> Iterator[None]:
    """Drop the hub client's lines about further attempts: one sentence follows if the last one fails."""
    logger = logging.getLogger("huggingface_hub.utils._http")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
