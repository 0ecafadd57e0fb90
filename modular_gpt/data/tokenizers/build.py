"""Tokenizers by name, by settings, or by the path of their files."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from modular_gpt.core.errors import ConfigError, DataError, unknown
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, encode, entries
from modular_gpt.data.cache_dir import cache_directory, new_in_cache, one_at_a_time
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import FILE, Tokenizer

SAMPLE_SETTING = "sample_characters"

log = logging.getLogger(__name__)


def build_tokenizer(
    config: str | PlainMapping | ComponentConfig, corpus: Corpus | None = None, cache_dir: str | Path | None = None
) -> Tokenizer:
    """A tokenizer from its name, a mapping with a ``name``, or a Config.

    Tokenizers that learn from text need ``corpus``. A learned tokenizer is saved in the cache directory and loaded for
    the same settings and the same text.

    Raises:
        ConfigError: an unknown name or setting, a missing package, or no corpus where one is needed.
        DataError: a file of the tokenizer is missing or damaged.
    """
    config = decode("tokenizer", config)
    if corpus is not None and not isinstance(corpus, Corpus):
        raise ConfigError(
            f"corpus must be a Corpus, such as build_corpus({{'name': 'text', 'path': 'notes.txt'}}), got"
            f" {type(corpus).__name__} {corpus!r:.40}"
        )
    component = cast(type[Tokenizer], config.component)
    if not component.learns or corpus is None:
        return component.build(config, corpus)
    key = hashlib.sha256(json.dumps([encode(config), corpus.fingerprint], sort_keys=True).encode()).hexdigest()[:24]
    directory = Path(cache_dir or cache_directory()).expanduser() / "tokenizers" / f"{component.name}-{key}"
    with one_at_a_time(directory):
        return _cached(directory, lambda: component.build(config, corpus))


def _cached(directory: Path, learn: Callable[[], Tokenizer]) -> Tokenizer:
    """The tokenizer in a directory of the cache, after learning and saving it if it is missing or damaged."""
    for _ in range(3):  # another process may remove a damaged directory after it was saved and before it is loaded
        if directory.exists():
            try:
                return Tokenizer.load(directory)
            except DataError as error:
                log.warning("%s: learning the tokenizer again", error)
        built = learn()
        with new_in_cache(directory, _valid) as new:
            built.save(new)
        if _valid(directory):
            return Tokenizer.load(directory)  # another process may have saved its own first
    return built


def _valid(directory: Path) -> bool:
    try:
        Tokenizer.load(directory)
    except DataError:
        return False
    return True


def with_former_defaults(settings: PlainMapping) -> PlainMapping:
    """Recorded settings of a tokenizer, with the former behaviour for a setting that their version did not have.

    Versions without ``sample_characters`` learned from the whole training text; so does a run of theirs that resumes.
    """
    entry = entries("tokenizer").get(str(settings.get("name")))
    if entry is None or not hasattr(entry.default(), SAMPLE_SETTING):
        return settings
    return {SAMPLE_SETTING: None, **settings}


def open_tokenizer(name_or_path: str | Path) -> Tokenizer:
    """Open a tokenizer that is not trained on a corpus, by its name or by the path of its files.

    name_or_path: a checkpoint of this package, a ``tokenizer.json`` of Hugging Face or a folder with one (or with
        GPT-2's vocab.json and merges.txt), or a name such as byte, gpt2 or cl100k_base

    Raises:
        ConfigError: there is no such file and no such name.
        DataError: a file is damaged.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _from_files(path)
    names = [name for name, entry in entries("tokenizer").items() if not cast(type[Tokenizer], entry.component).learns]
    if str(name_or_path) not in set(names) - {"hf"}:
        choices = unknown("tokenizer", str(name_or_path), set(names) - {"hf"})
        raise ConfigError(f"{choices}; or give the path of a tokenizer.json or of a folder with one")
    return build_tokenizer(str(name_or_path))


def _from_files(path: Path) -> Tokenizer:
    """The tokenizer in a file or folder: one that this package saved, or else one in Hugging Face's format."""
    for folder in (path / "modular_gpt", path) if path.is_dir() else (path.parent,):
        if (path.is_dir() or path.name == FILE) and Tokenizer.is_saved_in(folder):
            return Tokenizer.load(folder)
    return build_tokenizer({"name": "hf", "path": str(path)})
