"""Rows of data files, read one at a time: JSON Lines, JSON, CSV, TSV and Parquet; the first four also compressed."""

import bz2
import codecs
import csv
import errno
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from modular_gpt.core.errors import ConfigError, DataError, first_line
from modular_gpt.core.json_files import MAX_BYTES, open_regular, parse_json
from modular_gpt.core.plain_types import PlainMapping

MAX_LINE = 2**26  # bytes of one JSON line
COMPRESSED = (".gz", ".bz2", ".xz")
READ_ERRORS = (OSError, EOFError, lzma.LZMAError)  # also of damaged compressed files


class Row(NamedTuple):
    """A row with its values by column.

    place: for messages: the file, and the line or the number of the row, from 1
    """

    place: str
    values: PlainMapping


Opened = io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile
Found = Row | DataError  # the error of a bad row, after which a reader continues


def is_row_file(path: Path) -> bool:
    """Whether a file has rows, by its suffix, which .gz, .bz2 or .xz may follow."""
    return _format(path) in READERS


def read_rows(path: Path, skipped: Callable[[DataError], None] | None = None) -> Iterator[Row]:
    """The rows of a file in order; only JSON files are held in memory, and groups of rows of Parquet files.

    skipped: called with the error of each bad row, which is then left out; None: the first one is raised

    Raises:
        DataError: the file cannot be read, is of another format, or has a bad row.
        ConfigError: a package that reads Parquet is missing.
    """
    name = _format(path)
    if name not in READERS:
        raise DataError(f"'{path}' has no rows by its name: give a file that ends in {', '.join(READERS)}")
    try:
        for found in READERS[name](path):
            if isinstance(found, Row):
                yield found
            elif skipped is None:
                raise found
            else:
                skipped(found)
    except READ_ERRORS as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or first_line(error)
        raise DataError(f"cannot read '{path}' ({reason}): restore it, make it readable, or leave it out") from error


def _format(path: Path) -> str:
    """The suffix of a file's name, before that of a compression."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSED else suffix


def _open(path: Path) -> Opened:
    """The bytes of a regular file, decompressed; OSError for a pipe, a device or a directory."""
    try:
        file = open_regular(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error
    match path.suffix.lower():
        case ".gz":
            return gzip.GzipFile(fileobj=file)
        case ".bz2":
            return bz2.BZ2File(file)
        case ".xz":
            return lzma.LZMAFile(file)
        case _:
            return file


def _row(place: str, value: object) -> Found:
    if isinstance(value, dict):
        return Row(place, value)
    return DataError(f'{place}: a row must be a JSON object, got {type(value).__name__}: write {{"text": ...}}')


def _json_lines(path: Path) -> Iterator[Found]:
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            place = f"'{path}', line {number}"
            if len(line) > MAX_LINE:
                raise DataError(f"{place} has more than {MAX_LINE:,} bytes: write one JSON object a line")
            if not line.strip():
                continue
            try:
                yield _row(place, parse_json(line.rstrip()))
            except json.JSONDecodeError as error:
                yield DataError(f"{place} is not JSON ({error.msg} at column {error.colno}): correct or remove it")
            except ValueError as error:
                yield DataError(f"{place} is not JSON ({first_line(error)}): correct or remove it")


def _json(path: Path) -> Iterator[Found]:
    """The objects of a JSON list, or if the file does not begin with one, of its lines."""
    with _open(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"'{path}' has more than {MAX_BYTES:,} bytes: write it as JSON Lines, one object a line")
    if not content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        rows = parse_json(content)
    except ValueError as error:
        raise DataError(f"'{path}' is not JSON ({first_line(error)}): write a list of objects") from error
    for number, row in enumerate(rows, 1):
        yield _row(f"'{path}', row {number}", row)


def _separated(path: Path, delimiter: str) -> Iterator[Found]:
    with _open(path) as binary, io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            check_header(path, header := next(reader, []))
            while True:
                place = f"'{path}', line {reader.line_num + 1}"
                with _long_cells():
                    cells = next(reader, None)
                if cells is None:
                    return
                if cells:
                    yield _cells(place, header, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            line = f"'{path}', line {reader.line_num + 1}"
            raise DataError(f"{line} is not CSV in UTF-8 ({first_line(error)}): correct it") from error


def check_header(path: Path, header: Sequence[str]) -> None:
    """Raise a DataError unless the first line of a table names its columns."""
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"'{path}', line 1: two columns have the name {twice!r}: rename one of them")
    if not any(name.strip() for name in header):
        raise DataError(f"'{path}' has no first line that names its columns: write one, such as prompt,completion")


@contextmanager
def _long_cells() -> Iterator[None]:
    """Context manager: allow cells as long as the lines of other files; the csv module has one limit per process."""
    limit = csv.field_size_limit(MAX_LINE)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _cells(place: str, header: Sequence[str], cells: Sequence[str]) -> Found:
    if len(cells) != len(header):
        return DataError(
            f"{place} has {len(cells)} cells, but the first line names {len(header)} columns: put text with commas,"
            " quotes or line ends into quotes"
        )
    return Row(place, dict(zip(header, cells, strict=True)))


def _parquet(path: Path) -> Iterator[Found]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"'{path}' needs the package 'pyarrow': pip install 'modular-gpt[data]'") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"'{path}', row {number}", values)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"'{path}' is not Parquet ({first_line(error)}): write it again") from error


READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
