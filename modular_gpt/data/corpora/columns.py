"""Texts in a column of files of rows: each row is a document."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modular_gpt.core.errors import DataError
from modular_gpt.data.corpora.base import TextChunk, before_border, chunk_text
from modular_gpt.data.corpora.files import SourceFile, changed, check_unchanged
from modular_gpt.data.rows import is_row_file, read_rows


@dataclass(frozen=True)
class RowFile(SourceFile):
    """A file of rows with a column of texts.

    rows: number of rows; sha256: of all texts, each after its length
    """

    column: str
    rows: int


class RowSlice(NamedTuple):
    """The rows of a file from ``start`` to ``stop``, each a document; ``characters``: length of their texts."""

    file: RowFile
    start: int
    stop: int
    characters: int

    def chunks(self) -> Iterator[TextChunk]:
        """The texts, row by row, in chunks.

        Raises:
            DataError: the file has changed since it was scanned.
        """
        try:
            for number, text in enumerate(_texts(self.file.path, self.file.column)):
                if number >= self.stop:
                    break
                if number >= self.start:
                    for chunk in chunk_text([text]):
                        yield TextChunk(f"{self.file.path}:{number + 1}", chunk)
        except DataError as error:
            raise changed(self.file.path) from error
        check_unchanged(self.file)


def scan_rows(path: Path, column: str) -> RowFile:
    """Read a file once to count its rows and characters, hash its texts and check that each row has one.

    Raises:
        DataError: the file cannot be read, is no file of rows, or has a row without text in the column; the message
            has the path and the row.
    """
    digest, rows, characters = hashlib.sha256(), 0, 0
    for text in _texts(path, column):
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
        rows, characters = rows + 1, characters + len(text)
    status = path.stat()
    return RowFile(path, characters, status.st_size, digest.hexdigest(), status.st_mtime_ns, column, rows)


def _texts(path: Path, column: str) -> Iterator[str]:
    """The text of each row of a file; a DataError for a row without text in the column."""
    for row in read_rows(path):
        text = row.values.get(column)
        if not isinstance(text, str):
            found = "nothing" if text is None else type(text).__name__
            columns = ", ".join(map(str, row.values))
            raise DataError(
                f"{row.place} has no text in column {column!r} (found {found}): set data.column to one of {columns}"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{row.place} is not valid Unicode (half a surrogate pair): correct the row") from error
        yield text


def skip_without_rows(path: Path) -> str | None:
    """The reason to skip a file in a folder of files of rows, by its suffix; None: it is read."""
    return None if is_row_file(path) else "without rows"


def whole_rows(files: list[RowFile]) -> list[RowSlice]:
    """All rows of each file."""
    return [RowSlice(file, 0, file.rows, file.characters) for file in files if file.characters]


def split_last_rows(files: list[RowFile], val_fraction: float) -> dict[str, list[RowSlice]]:
    """Split n rows: the first ``int(n * (1 - val_fraction))`` for training, the others for validation, one at least.

    Raises:
        DataError: there are fewer than two rows.
    """
    total = sum(file.rows for file in files)
    if total < 2:
        raise DataError(f"the corpus has {total} rows in all, too few for training and validation: give more")
    border = max(1, min(total - 1, int(total * (1 - val_fraction))))
    splits: dict[str, list[RowSlice]] = {"train": [], "validation": []}
    for file, at in zip(files, before_border((file.rows for file in files), border), strict=True):
        if at > 0:
            splits["train"].append(_slice(file, 0, at))
        if at < file.rows:
            splits["validation"].append(_slice(file, at, file.rows))
    return splits


def _slice(file: RowFile, start: int, stop: int) -> RowSlice:
    """A slice of a file's rows; the rows of a file that is in both splits are read again to count characters."""
    if stop - start == file.rows:
        return RowSlice(file, start, stop, file.characters)
    lengths = (len(text) for number, text in enumerate(_texts(file.path, file.column)) if start <= number < stop)
    return RowSlice(file, start, stop, sum(lengths))
