"""The interface of a corpus: two splits of documents, which are streamed anew at each reading."""

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
    """A stretch of a document's text; consecutive chunks with the same ``document`` are one document."""

    document: str
    text: str


class Corpus(Component, ABC, slot="data"):
    """Training and validation data: documents of text, unless ``prepare`` is overridden.

    packing: settings that separate the documents in a window; None: they are not separated
    notes: lines about the text that a run prints at its beginning, such as the number of skipped files

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
        """Yield the chunks of a split, one of ``SPLITS``, in the same order at each call."""

    def characters(self, split: str) -> int | None:
        """Number of characters of a split, for the progress line; None if it is not known before reading."""
        return None

    def prepare(self, tokenizer: "Tokenizer", cache_dir: str | Path | None = None) -> "PreparedData":
        """Prepare the batches of a training: encode the text into token files (``modular_gpt.data.prepare``).

        A corpus of samples instead of text overrides this and returns a ``PreparedData`` with its own inputs and
        targets.
        """
        from modular_gpt.data.prepare import prepare

        return prepare(self, tokenizer, cache_dir)

    @classmethod
    def tokenizer_config(cls, config: Any, tokenizer: ComponentConfig) -> ComponentConfig:
        """The settings of the tokenizer for this data: ``tokenizer``, unless the data determines its ids.

        Raises:
            ConfigError: the data cannot be encoded by this tokenizer.
        """
        return tokenizer

    def with_template(self, tokenizer: "Tokenizer") -> "Tokenizer":
        """The tokenizer to save with the model: ``tokenizer`` with the template that renders the conversations.

        A corpus without conversations returns ``tokenizer`` unchanged.
        """
        return tokenizer

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) that changes with the text of either split."""

    @abstractmethod
    def describe(self) -> Mapping[str, int | str]:
        """Properties of the corpus that a run records, such as files, bytes and versions."""


def before_border(sizes: Iterable[int], border: int) -> Iterator[int]:
    """Yield the length of each of consecutive stretches, which have these sizes, that lies before ``border``."""
    for size in sizes:
        yield min(max(border, 0), size)
        border -= size


def chunk_text(texts: Iterable[str], limit: int = CHUNK) -> Iterator[str]:
    """The concatenation of ``texts`` in chunks of at most ``limit`` characters, cut where tokenizers cut too.

    A chunk ends after a line feed, or else before a space, that follows a character other than white space and
    precedes a letter or digit. The patterns of the usual byte-pair encodings split there as well, so that the chunks
    give the same tokens as the whole text. Text without such a place is cut at the limit.
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
    """The end of the chunk that begins at ``start``: an index above ``start``, and at most ``limit``."""
    for separator, offset in (("\n", 1), (" ", 0)):
        at = text.rfind(separator, start + 1, limit)
        while at > 0:
            if not text[at - 1].isspace() and text[at + 1].isalnum():
                return at + offset
            at = text.rfind(separator, start + 1, at)
    return limit
