"""Memory-mapped token files."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from modular_gpt.core.plain_types import PlainDict


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split, in a memory-mapped file.

    count: number of tokens; bytes: size of the text in UTF-8
    fingerprint: SHA-256 (hexadecimal) of the file
    documents: file with the index of the first token of each document, 64 bits each; None: it was not written
    zlib_bits_per_byte: bits per byte of the text compressed by zlib -9; None: not measured, as for training text
    """

    name: str
    path: Path
    dtype: np.dtype
    count: int
    bytes: int
    fingerprint: str
    zlib_bits_per_byte: float | None
    documents: Path | None = None

    @cached_property
    def array(self) -> np.ndarray:
        """(count,) the ids, memory-mapped and read-only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    @cached_property
    def document_starts(self) -> np.ndarray:
        """(documents,) index of the first token of each document, ascending from 0."""
        assert self.documents is not None
        return np.memmap(self.documents, dtype=np.dtype("<i8"), mode="r")

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> PlainDict:
        """Pickle without the mapped arrays: a worker process maps the files itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("array", "document_starts")}

    def bits_per_byte(self, loss: float) -> float:
        """Convert a mean loss on these tokens from nats per token to bits per byte of text."""
        return loss / math.log(2) * self.count / self.bytes
