"""Where the files of a published model are: a folder, the local Hugging Face cache, or the hub."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modular_gpt.core.errors import CheckpointError

CONFIG = "config.json"
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
        """The content of a JSON file; None where the model has no such file."""
        path = self.file(name)
        if path is None:
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"'{path}' cannot be read ({error}); copy or download it again") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"'{path}' holds no settings; copy or download it again")
        return content


def locate(name_or_path: str | Path) -> Source:
    """The source that a user means: a folder with a config.json, or a name on the hub.

    Raises:
        CheckpointError: it looks like a path, but no model is there.
    """
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if (path / CONFIG).is_file():
        return Source(name, folder=path)
    if path.exists():
        raise CheckpointError(f"'{path}' has no {CONFIG}; give the folder of a model, or a name such as gpt2")
    if isinstance(name_or_path, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"there is no folder '{path}'; give the folder of a model, or a name such as gpt2")
    for repository in (SHORT_NAMES.get(name, name), name):
        cached = _from_cache(repository, CONFIG, None)
        if cached is not None:
            return Source(name, repository=repository, revision=cached.parent.name)
    return Source(name, repository=SHORT_NAMES.get(name, name))


def tokenizer_file(name_or_path: str | Path) -> Path | None:
    """The ``tokenizer.json`` of a published model, beside its ``tokenizer_config.json``; None where it has none.

    Raises:
        CheckpointError: there is no such model, or the hub cannot be reached.
    """
    source = locate(name_or_path)
    with suppress(Unreachable):  # names the end-of-text token, and is looked for beside the other
        source.file("tokenizer_config.json")
    return source.file(TOKENIZER)


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
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
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
