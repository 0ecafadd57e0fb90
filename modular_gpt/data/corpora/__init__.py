"""Corpora: where the text comes from. One file a kind; importing this package registers them all."""

from collections.abc import Mapping
from typing import Any

from modular_gpt.core.registry import ComponentConfig, decode, import_folder
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk

__all__ = ["SPLITS", "Corpus", "TextChunk", "build_corpus"]

import_folder(__name__, __path__)


def build_corpus(config: str | Mapping[str, Any] | ComponentConfig) -> Corpus:
    """A corpus from its name, a mapping with a ``name``, or a Config.

    Raises:
        ConfigError: an unknown name or setting, or a setting that is missing.
        DataError: the text is missing or is no text.
    """
    config = decode("data", config)
    return config.build()
