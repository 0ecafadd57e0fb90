"""Text files: found by path or pattern, checked to be UTF-8 text, read in bounded memory.

A byte order mark at the beginning of a file is dropped, and Windows line ends (CRLF) are read as line feeds.
"""

import codecs
import glob
import hashlib
import json
from abc import ABC
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk, chunk_text

BLOCK = 2**20  # bytes read at a time
BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class TextFile:
    """A file that was read once from end to end and is UTF-8 text.

    name: of the document; characters: of its text, as it is read
    bytes, modified (nanoseconds): of the file on disk
    sha256: of its text in UTF-8, which are the file's bytes unless a byte order mark or CRLF is in them
    """

    path: Path
    name: str
    characters: int
    bytes: int
    sha256: str
    modified: int


class FileSlice(NamedTuple):
    """The characters of a file from ``start`` to ``stop``."""

    file: TextFile
    start: int
    stop: int


def path_patterns(value: object, setting: str = "data.path") -> list[str]:
    """Paths and patterns as a list, from one or several of them, each a string or a Path.

    Raises:
        ConfigError: it is something else.
    """
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if not listed or not all(isinstance(item, (str, Path)) and str(item) for item in listed):
        raise ConfigError(f"{setting} must be a path, a pattern or a list of these, got {value!r}")
    return [str(item) for item in listed]


def find_files(patterns: Iterable[str], setting: str = "data.path") -> list[Path]:
    """The files that paths and patterns name, sorted within a pattern.

    ``**`` crosses directories and ``~`` is the home directory. A file that is named twice, also by another spelling
    or through a link, is found once, where it comes first. ``setting`` names the paths in messages.

    Raises:
        DataError: a path does not exist or is a directory, or a pattern matches no file.
    """
    found: dict[object, Path] = {}
    for path in (path for pattern in patterns for path in _matches(pattern, setting)):
        found.setdefault(_identity(path), path)
    return list(found.values())


def _matches(pattern: str, setting: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        example = path / "**" / "*.txt"
        raise DataError(f"{pattern!r} is a directory: name the files in it, for example '{example}'")
    if path.exists() or path.is_symlink():
        return [path]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        what = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise DataError(f"{what} {pattern!r} (seen from {Path.cwd()}): correct {setting}")
    return files


def _identity(path: Path) -> object:
    """A key that is equal for all paths and links to the same file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()


def scan(path: Path, name: str | None = None) -> TextFile:
    """Read a file once, to know its size in characters and its hash, and that it is text.

    Raises:
        DataError: it cannot be read, holds NUL bytes, or is not UTF-8; names the file and the byte offset.
    """
    digest, characters = hashlib.sha256(), 0
    try:
        status = path.stat()
        for text in _normalized(_decoded(path)):
            digest.update(text.encode())
            characters += len(text)
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable or leave it out") from error
    return TextFile(path, name or str(path), characters, status.st_size, digest.hexdigest(), status.st_mtime_ns)


def read_text(path: Path) -> str:
    """The whole text of a file, as a corpus reads it.

    Raises:
        DataError: as ``scan``.
    """
    try:
        return "".join(_normalized(_decoded(path)))
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable or leave it out") from error


def _decoded(path: Path) -> Iterator[str]:
    """The characters of a file, block by block.

    Raises:
        OSError: it cannot be read.
        DataError: it is not UTF-8 text.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
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
    """A file's text without the byte order mark at its beginning, and with LF where it has CRLF."""
    held, begun = "", False  # a carriage return whose line feed may be in the next block
    for text in texts:
        if not begun and text:
            text, begun = text.removeprefix(BYTE_ORDER_MARK), True
        text = held + text
        held = "\r" if text.endswith("\r") else ""
        yield text[: len(text) - len(held)].replace("\r\n", "\n")
    if held:
        yield held


def read_slice(file_slice: FileSlice) -> Iterator[TextChunk]:
    """The text of a slice of a file, in chunks.

    Raises:
        DataError: the file is not the one that was scanned any more.
    """
    for text in chunk_text(_characters(*file_slice)):
        yield TextChunk(file_slice.file.name, text)


def _characters(file: TextFile, start: int, stop: int) -> Iterator[str]:
    position = 0
    try:
        for text in _normalized(_decoded(file.path)):
            if position >= stop:
                break
            yield text[max(start - position, 0) : stop - position]
            position += len(text)
        status = file.path.stat()
    except (OSError, DataError) as error:
        raise _changed(file) from error
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.modified):
        raise _changed(file)


def _changed(file: TextFile) -> DataError:
    return DataError(f"'{file.path}' changed while it was read: start again when nothing writes to it")


class FileCorpus(Corpus, ABC):
    """A corpus of slices of files for each split; a subclass fills ``splits``."""

    splits: dict[str, list[FileSlice]]

    def documents(self, split: str) -> Iterator[TextChunk]:
        for file_slice in self.splits[split]:
            yield from read_slice(file_slice)

    def characters(self, split: str) -> int | None:
        return sum(file_slice.stop - file_slice.start for file_slice in self.splits[split])

    @property
    def fingerprint(self) -> str:
        ordered = [(split, file_slice) for split in SPLITS for file_slice in self.splits[split]]
        content = [(split, file_slice.file.sha256, file_slice.start, file_slice.stop) for split, file_slice in ordered]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        files = [file_slice.file for slices in self.splits.values() for file_slice in slices]
        sizes = {file.path: file.bytes for file in files}
        return {"files": len(sizes), "bytes": sum(sizes.values())}


def split_end(files: list[TextFile], val_fraction: float) -> dict[str, list[FileSlice]]:
    """Read all files as one long text, whose last characters are for validation.

    The rule is the same for one file and for many (they follow each other in order, with nothing between): with n
    characters in all, the first ``int(n * (1 - val_fraction))`` are for training. The file in which that border lies
    is in both splits, with another slice in each.

    Raises:
        DataError: one of the two would be empty.
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
    for file in files:
        at = min(max(border, 0), file.characters)
        if at > 0:
            splits["train"].append(FileSlice(file, 0, at))
        if at < file.characters:
            splits["validation"].append(FileSlice(file, at, file.characters))
        border -= file.characters
    return splits


def check_fraction(val_fraction: float) -> None:
    """Raise a ConfigError unless ``val_fraction`` lies between 0 and 1."""
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
