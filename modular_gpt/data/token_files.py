"""Prepared data: two memory-mapped token files and what is known about them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict


@dataclass(frozen=True)
class TokenSplit:
    """The tokens of one split, on disk.

    count: tokens; bytes: of the UTF-8 text they stand for
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
        """For worker processes: each maps the file itself instead of receiving a copy of the tokens."""
        return {name: value for name, value in self.__dict__.items() if name != "array"}

    def bits_per_byte(self, loss: float) -> float:
        """A mean loss on these tokens (nats per token) as bits per byte of text, whatever the tokenizer."""
        return loss / math.log(2) * self.count / self.bytes


@dataclass(frozen=True)
class PreparedData:
    """A corpus as one tokenizer encodes it.

    manifest: all that is recorded about it (corpus, tokenizer, dtype, counts, hashes), plain JSON values
    """

    train: TokenSplit
    validation: TokenSplit
    manifest: PlainDict

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint records, so that a resumed run can tell that it reads the same data."""
        return {part: self.manifest[part]["fingerprint"] for part in ("corpus", "tokenizer")}

    def check_identity(self, recorded: Mapping[str, str]) -> None:
        """Raise a DataError unless this is the data whose ``identity`` was recorded."""
        remedy = {
            "corpus": "restore the text, or start a new run",
            "tokenizer": "use the tokenizer of the checkpoint, or start a new run",
        }
        for part, fingerprint in self.identity.items():
            if recorded.get(part) != fingerprint:
                old = str(recorded.get(part))[:12]
                raise DataError(
                    f"the {part} is not the one of the checkpoint (fingerprint {fingerprint[:12]} now, {old} then):"
                    f" {remedy[part]}"
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a DataError when ids of the tokenizer lie beyond a model's vocabulary."""
        needed = self.manifest["tokenizer"]["vocab_size"]
        if needed > vocab_size:
            raise DataError(
                f"the tokenizer has {needed} ids but the model only {vocab_size}:"
                f" set vocab_size to {needed} or more, or take the tokenizer the model was trained with"
            )
