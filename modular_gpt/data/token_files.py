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
    zlib_bits_per_byte: bits that zlib -9 needs for a byte of the text; measured for validation only
    """

    name: str
    path: Path
    dtype: np.dtype
    count: int
    bytes: int
    fingerprint: str
    zlib_bits_per_byte: float | None

    @cached_property
    def array(self) -> np.ndarray:
        """(count,) the ids, memory-mapped and read-only."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))

    def __len__(self) -> int:
        return self.count

    def __getstate__(self) -> PlainDict:
        """Pickle without the mapped array: a worker process maps the file itself."""
        return {name: value for name, value in self.__dict__.items() if name != "array"}

    def bits_per_byte(self, loss: float) -> float:
        """A mean loss on these tokens (nats per token) as bits per byte of text, whatever the tokenizer."""
        return loss / math.log(2) * self.count / self.bytes
