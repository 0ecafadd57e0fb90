"""The interface between tokenizers, which decode, and generation, which streams text."""

from typing import Protocol


class StreamDecoder(Protocol):
    """Decodes ids one at a time.

    The joined results of ``push`` and ``flush`` equal ``decode(ids, errors="ignore")`` of all ids.
    """

    def push(self, id: int) -> str:
        """Add an id and return the text that is complete now; may be empty, never a part of a character."""

    def flush(self) -> str:
        """Return the text that is left when no more ids follow."""
