"""Decoding one id at a time without ever showing a part of a character."""

import codecs
from collections.abc import Callable

from modular_gpt.core.stream_decoder import StreamDecoder

__all__ = ["ByteStream", "StreamDecoder", "TextStream"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class ByteStream:
    """Streaming decoder for vocabularies whose ids are bytes."""

    def __init__(self, to_bytes: Callable[[int], bytes], has_text: Callable[[int], bool]) -> None:
        """to_bytes: the bytes of an id; has_text: whether an id has any, others are left out"""
        self._to_bytes, self._has_text = to_bytes, has_text
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._to_bytes(id)) if self._has_text(id) else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class TextStream:
    """For any vocabulary: decodes the newest ids together with the ones shown last.

    The ones shown last are context (a decoder may treat the first token of a text differently). Text that
    ends in the replacement character may be an unfinished character, so it waits for the next id. A run of bytes
    waits for its end: one byte that is not UTF-8 turns all of the run into replacement characters.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        has_text: Callable[[int], bool],
        is_byte: Callable[[int], bool] = lambda id: False,
    ) -> None:
        """decode: the text of ids; has_text: whether an id has any, others are left out

        is_byte: whether an id is one byte; ``decode`` decodes consecutive ones together
        """
        self._decode, self._has_text, self._is_byte = decode, has_text, is_byte
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        if not self._has_text(id):
            return ""
        self._waiting.append(id)
        if self._is_byte(id):
            return ""
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

    def settle(self) -> None:
        """Count the text pushed so far as returned, but for an unfinished character at its end."""
        if not self._new_text().endswith(UNFINISHED):
            self._context, self._waiting = [*self._context, *self._waiting], []

    def _new_text(self) -> str:
        return self._decode(self._context + self._waiting)[len(self._decode(self._context)) :]
