"""What a corpus is: two splits of documents that can be read again and again without being held in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from modular_gpt.core.registry import Component, ComponentConfig

SPLITS = ("train", "validation")
PIECE = 2**17  # characters; long documents arrive in pieces of at most this many


class TextChunk(NamedTuple):
    """A part of a document's text. Consecutive pieces with the same ``document`` belong together."""

    document: str
    text: str


class Corpus(Component, ABC, slot="data"):
    """Text to train on and text to validate on.

    Raises:
        ConfigError: a setting is missing or wrong.
        DataError: the text is missing, empty or no text; known once the corpus is constructed.
    """

    @abstractmethod
    def __init__(self, config: ComponentConfig) -> None: ...

    @abstractmethod
    def documents(self, split: str) -> Iterator[TextChunk]:
        """The pieces of one of the ``SPLITS``, always in the same order."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) that changes with the text of either split."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a run records about its text: plain values such as files, bytes, versions."""


def cut(chunks: Iterable[str], limit: int = PIECE) -> Iterator[str]:
    """The same text in pieces of at most ``limit`` characters, cut where tokenizers cut anyway.

    That is after a line end, or else before a space, that stands alone before a letter or digit: there the
    patterns of the usual byte-pair encodings split too, so that the pieces give the same tokens as the whole
    text. Text without such a place is cut at the limit.
    """
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) > limit:
            at = _cut_at(buffer, limit)
            yield buffer[:at]
            buffer = buffer[at:]
    if buffer:
        yield buffer


def _cut_at(text: str, limit: int) -> int:
    for mark, offset in (("\n", 1), (" ", 0)):
        at = text.rfind(mark, 1, limit)
        while at > 0:
            if not text[at - 1].isspace() and text[at + 1].isalnum():
                return at + offset
            at = text.rfind(mark, 1, at)
    return limit
