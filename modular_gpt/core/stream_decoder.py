"""Interface of incremental decoding, between tokenizers and streaming generation."""

from typing import Protocol, runtime_checkable


class StreamDecoder(Protocol):
    """Decodes token ids one at a time.

    The joined results of ``push`` and ``flush`` equal ``decode(ids, errors="ignore")`` of all ids.
    """

    def push(self, id: int) -> str:
        """Add an id and return the text that is now complete, possibly empty, without incomplete characters."""

    def flush(self) -> str:
        """Return the remaining text after the last id."""


@runtime_checkable
class SettlingDecoder(Protocol):
    """A decoder that holds back complete text, such as a run of bytes that may continue."""

    def settle(self) -> None:
        """Treat the text pushed so far as returned, except for an unfinished character at its end."""
