"""Records to token files, with the role of each token and the start of each record."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.progress import Update, progress_line
from modular_gpt.data.corpora.base import SPLITS
from modular_gpt.data.records.encode import ANSWER, RecordEncoder
from modular_gpt.data.records.read import Skipped
from modular_gpt.data.records.record import Record
from modular_gpt.data.token_cache import (
    check_file,
    check_ids,
    open_or_build,
    open_tokens,
    smallest_dtype,
    token_file,
    write_starts,
)
from modular_gpt.data.token_files import TokenSplit
from modular_gpt.data.tokenizers.base import Tokenizer

RECORDS_FORMAT = 1  # version of the files
CHUNK = 4096  # records whose roles are searched at a time


class RecordSource(Protocol):
    """A source of records, such as a corpus."""

    @property
    def content(self) -> str:
        """Fingerprint of the records and of the splits that they are in."""

    def records(self, split: str, skipped: Skipped) -> Iterator[Record]:
        """The records of a split; ``skipped`` counts those that are left out."""

    def describe(self) -> PlainMapping:
        """Properties of the source that a run records."""


@dataclass(frozen=True)
class RecordSplit:
    """The records of one split.

    tokens: of all records in sequence; roles_path: file with the role of each token, one byte each
    formats: number of records by format; role_counts: number of tokens by role
    skipped: number of bad records that are left out; mistakes: the error messages of the first of these
    """

    tokens: TokenSplit
    roles_path: Path
    formats: dict[str, int]
    role_counts: list[int]
    skipped: int
    mistakes: list[str]

    @cached_property
    def roles(self) -> np.ndarray:
        """(tokens,) uint8, memory-mapped."""
        return np.memmap(self.roles_path, dtype=np.uint8, mode="r", shape=(self.tokens.count,))

    @property
    def starts(self) -> np.ndarray:
        """(n,) index of the first token of each record."""
        return self.tokens.document_starts

    def answers(self, role: int) -> np.ndarray:
        """(n,) index of the first token of each record with this role or a higher one; without one, its end."""
        first = self.ends.copy()
        for begin in range(0, len(first), CHUNK):
            starts, ends = self.starts[begin : begin + CHUNK], self.ends[begin : begin + CHUNK]
            found = np.flatnonzero(self.roles[starts[0] : ends[-1]] >= role) + starts[0]
            at = np.append(found, ends[-1])[np.searchsorted(found, starts)]
            first[begin : begin + CHUNK] = np.minimum(at, ends)
        return first

    @cached_property
    def ends(self) -> np.ndarray:
        """(n,) index after the last token of each record."""
        return np.append(self.starts[1:], self.tokens.count)


Splits = dict[str, RecordSplit]


def prepare_records(
    source: RecordSource, encoder: RecordEncoder, cache_dir: str | Path | None
) -> tuple[Splits, PlainDict]:
    """The tokens of the records of both splits and their manifest, from the cache if they were encoded before.

    Raises:
        DataError: a split has no record, a record cannot be encoded, or the cache cannot be written.
    """
    identity = [source.content, encoder.tokenizer.fingerprint, encoder.fingerprint]
    return open_or_build(
        f"records {RECORDS_FORMAT} {' '.join(identity)}",
        lambda directory: _build(directory, source, encoder),
        _read,
        cache_dir,
    )


def _read(directory: Path, manifest: PlainDict) -> tuple[Splits, PlainDict]:
    return {split: _open_split(directory, split, manifest) for split in SPLITS}, manifest


def _open_split(directory: Path, split: str, manifest: PlainMapping) -> RecordSplit:
    tokens, roles = open_tokens(directory, split, manifest), directory / roles_file(split)
    record = manifest["splits"][split]
    check_file(roles, tokens.count, record["roles_sha256"])
    return RecordSplit(
        tokens, roles, dict(record["formats"]), list(record["role_counts"]), record["skipped"], list(record["mistakes"])
    )


def roles_file(split: str) -> str:
    """Name of the file with the role of each token."""
    return f"{split}.roles.bin"


def _build(directory: Path, source: RecordSource, encoder: RecordEncoder) -> PlainDict:
    """Write the files of both splits; returns the manifest."""
    tokenizer = encoder.tokenizer
    return {
        "format": RECORDS_FORMAT,
        "corpus": {**source.describe(), "fingerprint": source.content},
        "tokenizer": tokenizer.describe(),
        "dtype": smallest_dtype(tokenizer.vocab_size).str,
        "splits": {split: _write(directory, source, split, encoder) for split in SPLITS},
    }


def _write(directory: Path, source: RecordSource, split: str, encoder: RecordEncoder) -> PlainDict:
    """Write the tokens, roles and starts of one split; returns its manifest record."""
    tokenizer: Tokenizer = encoder.tokenizer
    dtype, skipped, formats = smallest_dtype(tokenizer.vocab_size), Skipped(), Counter[str]()
    token_digest, role_digest, starts, count = hashlib.sha256(), hashlib.sha256(), array("q"), 0
    size, by_role = RecordSize(formats), np.zeros(ANSWER + 1, dtype=np.int64)
    paths = directory / token_file(split), directory / roles_file(split)
    with (
        progress_line(f"Encoding the {split} records") as update,
        paths[0].open("wb") as token_bytes,
        paths[1].open("wb") as role_bytes,
    ):
        for encoded in encoder.encode(size.measured(source.records(split, skipped), update)):
            check_ids(encoded.ids, tokenizer.vocab_size, tokenizer.name, f"a record of the {split} split")
            starts.append(count)
            count += len(encoded.ids)
            by_role += np.bincount(encoded.roles, minlength=len(by_role))
            for file, digest, values in (
                (token_bytes, token_digest, encoded.ids.astype(dtype)),
                (role_bytes, role_digest, encoded.roles),
            ):
                file.write(data := values.tobytes())
                digest.update(data)
    if not starts:
        raise DataError(NO_RECORDS[split])
    return {
        "tokens": count,
        "documents": len(starts),
        "bytes": size.bytes,
        "formats": dict(formats),
        "role_counts": by_role.tolist(),
        "skipped": skipped.count,
        "mistakes": skipped.first,
        "sha256": token_digest.hexdigest(),
        "roles_sha256": role_digest.hexdigest(),
        "documents_sha256": write_starts(directory, split, starts),
    }


NO_RECORDS = {
    "train": "no record is left to train on: lower data.val_fraction or give data.path more records",
    "validation": "no record is left to validate on: raise data.val_fraction, or give some by data.validation=<file>",
}


class RecordSize:
    """Counts the records of a stream by format, and the bytes of their texts."""

    def __init__(self, formats: Counter[str]) -> None:
        self.formats, self.bytes = formats, 0

    def measured(self, records: Iterable[Record], update: Update) -> Iterator[Record]:
        """Yield the records unchanged, each after it was counted; ``update`` is called with the number so far."""
        for number, record in enumerate(records, 1):
            self.formats[record.format] += 1
            self.bytes += len(record.answer.encode()) + len(record.prompt.encode())
            update(number)
            yield record
