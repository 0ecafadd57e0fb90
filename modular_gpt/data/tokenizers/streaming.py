"""Streaming decoders, which take one id at a time and return whole characters."""

import codecs
from collections.abc import Callable

from modular_gpt.core.stream_decoder import StreamDecoder

__all__ = ["ByteStream", "StreamDecoder", "TextStream"]

UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class ByteStream:
    """Streaming decoder for vocabularies whose ids are bytes."""

    def __init__(self, to_bytes: Callable[[int], bytes], has_text: Callable[[int], bool]) -> None:
        """to_bytes: returns the bytes of an id; has_text: whether an id has any; ids without are left out"""
        self._to_bytes, self._has_text = to_bytes, has_text
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id: int) -> str:
        return self._decoder.decode(self._to_bytes(id)) if self._has_text(id) else ""

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class TextStream:
    """Streaming decoder for any vocabulary: decodes new ids together with those returned last.

    The ids returned last are context, since a decoder may treat the first token of a text differently. Text that ends
    in the replacement character may end in an incomplete character and is held back until the next id. A run of byte
    ids is held back until its end, since one invalid byte turns the whole run into replacement characters.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        has_text: Callable[[int], bool],
        is_byte: Callable[[int], bool] = lambda id: False,
    ) -> None:
        """decode: returns the text of ids; has_text: whether an id has any; ids without are left out

        is_byte: whether an id is one byte; ``decode`` decodes consecutive bytes together
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
        """Treat the text pushed so far as returned, unless it ends in an incomplete character."""
        if not self._new_text().endswith(UNFINISHED):
            self._context, self._waiting = [*self._context, *self._waiting], []

    def _new_text(self) -> str:
        return self._decode(self._context + self._waiting)[len(self._decode(self._context)) :]
