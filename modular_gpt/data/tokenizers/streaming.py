"""Decoding one id at a time without ever showing a part of a character."""

import codecs
from collections.abc import Callable
from typing import Protocol

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class StreamDecoder(Protocol):
    """Text as it becomes complete: what ``push`` and ``flush`` return, joined, is ``decode`` of all ids."""

    def push(self, id: int) -> str:
        """The characters that this id completes; may be empty."""

    def flush(self) -> str:
        """What is left when no more ids come."""


class ByteStream:
    """For vocabularies whose ids stand for bytes."""

    def __init__(self, to_bytes: Callable[[int], bytes]) -> None:
        self._to_bytes = to_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._to_bytes(id))

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class TextStream:
    """For any vocabulary: decodes the newest ids together with the ones shown last.

    The ones shown last are context (a decoder may treat the first token of a text differently). Text that
    ends in the replacement character may be an unfinished character, so it waits for the next id.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        self._waiting.append(id)
        text = self._new_text()
        if text.endswith(UNFINISHED):
            return ""
        if text:
            self._context, self._waiting = self._waiting, []
        return text

    def flush(self) -> str:
        text = self._new_text()
        self._context, self._waiting = self._waiting, []
        return text

    def _new_text(self) -> str:
        return self._decode(self._context + self._waiting)[len(self._decode(self._context)) :]
