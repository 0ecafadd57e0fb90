"""Tokenizers: text to ids. One file a kind; importing this package registers them all."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from modular_gpt.core.errors import DataError
from modular_gpt.core.registry import ComponentConfig, decode, encode, import_folder
from modular_gpt.data.cache_dir import cache_directory, new_in_cache
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import Tokenizer
from modular_gpt.data.tokenizers.char import CharTokenizer
from modular_gpt.data.tokenizers.streaming import StreamDecoder

log = logging.getLogger(__name__)

__all__ = [
    "CharTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "build_tokenizer",
]

import_folder(__name__, __path__)


def build_tokenizer(
    config: str | Mapping[str, Any] | ComponentConfig, corpus: Corpus | None = None, cache_dir: str | Path | None = None
) -> Tokenizer:
    """A tokenizer from its name, a mapping with a ``name``, or a Config.

    Kinds that learn from text need ``corpus``. What they learned is kept in the cache directory
    and used again for the same settings and the same text.

    Raises:
        ConfigError: an unknown name or setting, a missing package, or no corpus where one is needed.
        DataError: a file it needs is missing or damaged.
    """
    config = decode("tokenizer", config)
    kind = cast(type[Tokenizer], config.component)
    if not kind.learns or corpus is None:
        return kind.build(config, corpus)
    key = hashlib.sha256(json.dumps([encode(config), corpus.fingerprint], sort_keys=True).encode()).hexdigest()[:24]
    directory = Path(cache_dir or cache_directory()) / "tokenizers" / f"{kind.name}-{key}"
    if directory.exists():
        try:
            return Tokenizer.load(directory)
        except DataError as error:
            log.warning("%s: learning the tokenizer again", error)
    built = kind.build(config, corpus)
    with new_in_cache(directory, _valid) as new:
        built.save(new)
    return Tokenizer.load(directory)  # perhaps another process's, which came first


def _valid(directory: Path) -> bool:
    try:
        Tokenizer.load(directory)
    except DataError:
        return False
    return True
