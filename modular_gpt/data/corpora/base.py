"""The interface of a corpus: two splits of documents that are read as often as needed without being held in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from modular_gpt.core.registry import Component, ComponentConfig
from modular_gpt.data.documents import Packing, TextConfig

if TYPE_CHECKING:
    from modular_gpt.data.prepared import PreparedData
    from modular_gpt.data.tokenizers.base import Tokenizer

SPLITS = ("train", "validation")
CHUNK = 2**17  # characters; long documents are read in chunks of at most this many


class TextChunk(NamedTuple):
    """Some of a document's text. Consecutive chunks with the same ``document`` belong together."""

    document: str
    text: str


class Corpus(Component, ABC, slot="data"):
    """What to train on and what to validate on: text, unless ``prepare`` is overridden.

    packing: how the documents in a window are kept apart; None: they are not
    notes: lines about the text for the beginning of a run, such as the number of files that were skipped

    Raises:
        ConfigError: a setting is missing or wrong.
        DataError: the text is missing, empty or not text; raised by the constructor.
    """

    packing: Packing | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, config: ComponentConfig) -> None:
        if isinstance(config, TextConfig):
            self.packing = config.packing

    @abstractmethod
    def documents(self, split: str) -> Iterator[TextChunk]:
        """The chunks of one of the ``SPLITS``, always in the same order."""

    def characters(self, split: str) -> int | None:
        """The number of characters of a split, for progress; None if it is not known before reading."""
        return None

    def prepare(self, tokenizer: "Tokenizer", cache_dir: str | Path | None = None) -> "PreparedData":
        """The batches of a training. Text is written into token files, see ``modular_gpt.data.prepare``.

        A corpus of samples returns a ``PreparedData`` that decides the inputs and targets of each batch.
        """
        from modular_gpt.data.prepare import prepare

        return prepare(self, tokenizer, cache_dir)

    @classmethod
    def tokenizer_config(cls, config: Any, tokenizer: ComponentConfig) -> ComponentConfig:
        """The settings of the tokenizer to use where ``tokenizer`` is chosen: those, unless the data has its own ids.

        Raises:
            ConfigError: the data cannot be encoded by this tokenizer.
        """
        return tokenizer

    def with_template(self, tokenizer: "Tokenizer") -> "Tokenizer":
        """The tokenizer to save with a model that learns from this corpus: with the chat template of its conversations.

        A corpus without conversations leaves the tokenizer as it is.
        """
        return tokenizer

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) that changes with the text of either split."""

    @abstractmethod
    def describe(self) -> Mapping[str, int | str]:
        """The record of the text in a run, such as files, bytes and versions."""


def before_border(sizes: Iterable[int], border: int) -> Iterator[int]:
    """How much of each of some stretches, which follow each other, lies before ``border``."""
    for size in sizes:
        yield min(max(border, 0), size)
        border -= size


def chunk_text(texts: Iterable[str], limit: int = CHUNK) -> Iterator[str]:
    """The concatenation of ``texts`` in chunks of at most ``limit`` characters, cut where tokenizers cut anyway.

    That is after a line end, or else before a space, that stands alone before a letter or digit: there the patterns
    of the usual byte-pair encodings split too, so that the chunks give the same tokens as the whole text. Text
    without such a place is cut at the limit.
    """
    rest = ""
    for text in texts:
        buffer, start = rest + text, 0
        while len(buffer) - start > limit:
            end = _cut_at(buffer, start, start + limit)
            yield buffer[start:end]
            start = end
        rest = buffer[start:]
    if rest:
        yield rest


def _cut_at(text: str, start: int, limit: int) -> int:
    """The index, after ``start`` and at most ``limit``, that ends the chunk from ``start``."""
    for mark, offset in (("\n", 1), (" ", 0)):
        at = text.rfind(mark, start + 1, limit)
        while at > 0:
            if not text[at - 1].isspace() and text[at + 1].isalnum():
                return at + offset
            at = text.rfind(mark, start + 1, at)
    return limit
