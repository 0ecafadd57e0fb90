"""Text files: checked to be UTF-8, read in bounded memory.

A byte order mark at the beginning of a file is dropped, and Windows line ends (CRLF) are read as line feeds.
"""

import codecs
import errno
import hashlib
import io
import json
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.json_files import open_regular
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk, before_border, chunk_text

BLOCK = 2**20  # bytes read at a time
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class SourceFile:
    """A file after one pass over it.

    characters: length of its text; sha256: of its text (hexadecimal)
    bytes, modified: size on disk, and time of the last modification in nanoseconds, to detect later changes
    """

    path: Path
    characters: int
    bytes: int
    sha256: str
    modified: int


@dataclass(frozen=True)
class TextFile(SourceFile):
    """A file of UTF-8 text.

    name: of the document
    sha256: of its text in UTF-8, without a byte order mark and with LF in place of CRLF
    """

    name: str


class FileSlice(NamedTuple):
    """The characters of a file from ``start`` to ``stop``: one document."""

    file: TextFile
    start: int
    stop: int

    @property
    def characters(self) -> int:
        """The number of characters."""
        return self.stop - self.start

    def chunks(self) -> Iterator[TextChunk]:
        """The text in chunks.

        Raises:
            DataError: the file has changed since it was scanned.
        """
        for text in chunk_text(_characters(*self)):
            yield TextChunk(self.file.name, text)


def scan(path: Path, name: str | None = None) -> TextFile:
    """Read a file once to count its characters, hash its text and check that it is UTF-8.

    name: of the document; None: the path

    Raises:
        DataError: the file cannot be read, has NUL bytes or is not UTF-8; the message has the path and byte offset.
    """
    digest, characters = hashlib.sha256(), 0
    try:
        status = path.stat()
        for text in _normalized(_decoded(path)):
            digest.update(text.encode())
            characters += len(text)
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable or leave it out") from error
    return TextFile(path, characters, status.st_size, digest.hexdigest(), status.st_mtime_ns, name or str(path))


def read_text(path: Path) -> str:
    """The whole text of a file, as a corpus reads it.

    Raises:
        DataError: as ``scan``.
    """
    try:
        return "".join(_normalized(_decoded(path)))
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable or leave it out") from error


def hash_file(path: Path) -> str:
    """SHA-256 of a regular file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise DataError(f"cannot read '{path}' ({reason}): make it readable or leave it out") from error


def _open(path: Path) -> io.BufferedReader:
    """The bytes of a regular file; OSError for a pipe or a device, which may have no end."""
    try:
        return open_regular(path)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from error


def _decoded(path: Path) -> Iterator[str]:
    """The characters of a file, block by block.

    Raises:
        OSError: the file cannot be read.
        DataError: the file is not UTF-8 text.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with _open(path) as file:
        while block := file.read(BLOCK):
            yield _decode(path, decoder, block, offset)
            offset += len(block)
    _decode(path, decoder, b"", offset)


def _decode(path: Path, decoder: codecs.IncrementalDecoder, block: bytes, offset: int) -> str:
    """The characters of a block that starts at byte ``offset``; an empty block ends the file."""
    if offset == 0 and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"'{path}' is UTF-16, not UTF-8, by its first bytes: convert it, iconv -f UTF-16 -t UTF-8")
    if (at := block.find(b"\0")) >= 0:
        raise DataError(f"'{path}' has a NUL byte at offset {offset + at}, so it is no text: leave it out")
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as error:
        byte, at = error.object[error.start], offset - pending + error.start
        raise DataError(
            f"'{path}' is not UTF-8 (byte 0x{byte:02x} at offset {at}): convert it from the encoding it has,"
            " for example iconv -f LATIN1 -t UTF-8"
        ) from error


def _normalized(texts: Iterable[str]) -> Iterator[str]:
    """The blocks of a text without the byte order mark at its beginning, and with LF in place of CRLF."""
    carry = ""  # a carriage return whose line feed may be in the next block
    at_start = True
    for text in texts:
        if at_start and text:
            text, at_start = text.removeprefix(BYTE_ORDER_MARK), False
        text = carry + text
        carry = "\r" if text.endswith("\r") else ""
        yield text[: len(text) - len(carry)].replace("\r\n", "\n")
    if carry:
        yield carry


def _characters(file: TextFile, start: int, stop: int) -> Iterator[str]:
    """The characters of a file from ``start`` to ``stop``, block by block; a DataError if the file has changed."""
    position = 0
    try:
        for text in _normalized(_decoded(file.path)):
            if position >= stop:
                break
            yield text[max(start - position, 0) : stop - position]
            position += len(text)
    except (OSError, DataError) as error:
        raise changed(file.path) from error
    check_unchanged(file)


def check_unchanged(file: SourceFile) -> None:
    """Raise a DataError if a file has changed since it was scanned."""
    try:
        status = file.path.stat()
    except OSError as error:
        raise changed(file.path) from error
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.modified):
        raise changed(file.path)


def changed(path: Path) -> DataError:
    """The error for a file that has changed since it was scanned."""
    return DataError(f"'{path}' changed while it was read: start again when nothing writes to it")


class SourceSlice(Protocol):
    """A slice of a file's text, from ``start`` to ``stop`` in characters or in rows."""

    @property
    def file(self) -> SourceFile: ...
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def characters(self) -> int: ...
    def chunks(self) -> Iterator[TextChunk]: ...


class FileCorpus(Corpus, ABC):
    """A corpus whose splits are slices of files; a subclass sets ``splits``."""

    splits: Mapping[str, Sequence[SourceSlice]]

    def documents(self, split: str) -> Iterator[TextChunk]:
        for file_slice in self.splits[split]:
            yield from file_slice.chunks()

    def characters(self, split: str) -> int | None:
        return sum(file_slice.characters for file_slice in self.splits[split])

    @property
    def fingerprint(self) -> str:
        ordered = [(split, file_slice) for split in SPLITS for file_slice in self.splits[split]]
        content = [(split, file_slice.file.sha256, file_slice.start, file_slice.stop) for split, file_slice in ordered]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        files = [file_slice.file for slices in self.splits.values() for file_slice in slices]
        sizes = {file.path: file.bytes for file in files}
        return {"files": len(sizes), "bytes": sum(sizes.values())}


def whole_files(files: Iterable[TextFile]) -> list[FileSlice]:
    """The whole text of each file."""
    return [FileSlice(file, 0, file.characters) for file in files if file.characters]


def split_end(files: list[TextFile], val_fraction: float) -> dict[str, list[FileSlice]]:
    """Split the concatenation of all files, whose last characters are for validation.

    Of n characters, the first ``int(n * (1 - val_fraction))`` are for training. The file with this border is in both
    splits, with a different slice in each.

    Raises:
        DataError: one of the splits would be empty.
    """
    total = sum(file.characters for file in files)
    border = int(total * (1 - val_fraction))
    if not 0 < border < total:
        names = ", ".join(f"'{file.path}'" for file in files[:3])
        raise DataError(
            f"the corpus has {total} characters in all ({names}), too few for training and validation:"
            " give data.path more text"
        )
    splits: dict[str, list[FileSlice]] = {split: [] for split in SPLITS}
    for file, at in zip(files, before_border((file.characters for file in files), border), strict=True):
        if at > 0:
            splits["train"].append(FileSlice(file, 0, at))
        if at < file.characters:
            splits["validation"].append(FileSlice(file, at, file.characters))
    return splits


def check_fraction(val_fraction: float) -> None:
    """Raise a ConfigError unless ``val_fraction`` lies between 0 and 1."""
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
