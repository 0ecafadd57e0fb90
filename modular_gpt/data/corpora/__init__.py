"""Corpora: sources of text, one file each. Importing this package imports its folder, which registers all of them."""

from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, import_folder
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk

__all__ = ["SPLITS", "Corpus", "TextChunk", "build_corpus"]

import_folder(__name__, __path__)


def build_corpus(config: str | PlainMapping | ComponentConfig) -> Corpus:
    """A corpus from its name, a mapping with a ``name``, or a Config.

    Raises:
        ConfigError: an unknown name or setting, or a setting that is missing.
        DataError: a file is missing or is not text.
    """
    corpus: Corpus = decode("data", config).build()
    return corpus
