"""Text files: found by path or pattern, checked to be UTF-8 text, read in bounded memory."""

import codecs
import glob
import hashlib
import json
from abc import ABC
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data.corpora.base import SPLITS, Corpus, TextChunk, cut

BLOCK = 2**20  # bytes read at a time


@dataclass(frozen=True)
class TextFile:
    """A file that was read once from end to end and is UTF-8 text."""

    path: Path
    name: str  # of the document
    characters: int
    bytes: int
    sha256: str
    modified: int  # nanoseconds


class Part(NamedTuple):
    """The characters of a file from ``start`` to ``stop``."""

    file: TextFile
    start: int
    stop: int


def find(patterns: Iterable[str]) -> list[Path]:
    """The files that paths and patterns name (``**`` crosses directories), sorted within a pattern, each once.

    Raises:
        DataError: a path does not exist or is a directory, or a pattern matches no file.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            example = path / "**" / "*.txt"
            raise DataError(f"{pattern!r} is a directory: name the files in it, for example '{example}'")
        if path.exists() or path.is_symlink():
            found[path] = None
            continue
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            what = "no file matches" if glob.has_magic(pattern) else "there is no file"
            raise DataError(f"{what} {pattern!r} (seen from {Path.cwd()}): correct data.path")
        found.update(dict.fromkeys(files))
    return list(found)


def scan(path: Path, name: str | None = None) -> TextFile:
    """Read a file once, to know its size in characters and its hash, and that it is text.

    Raises:
        DataError: it cannot be read, holds NUL bytes, or is not UTF-8; names the file and the byte offset.
    """
    digest, decoder = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")()
    characters = size = 0
    try:
        modified = path.stat().st_mtime_ns
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                characters += len(_decoded(path, decoder, block, size))
                digest.update(block)
                size += len(block)
        _decoded(path, decoder, b"", size)
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): make it readable or leave it out") from error
    return TextFile(path, name or str(path), characters, size, digest.hexdigest(), modified)


def _decoded(path: Path, decoder: codecs.IncrementalDecoder, block: bytes, offset: int) -> str:
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


def pieces(part: Part) -> Iterator[TextChunk]:
    """The text of a part of a file, in pieces.

    Raises:
        DataError: the file is not the one that was scanned any more.
    """
    for text in cut(_characters(part.file, part.start, part.stop)):
        yield TextChunk(part.file.name, text)


def _characters(file: TextFile, start: int, stop: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position = 0
    try:
        with file.path.open("rb") as stream:
            while position < stop and (block := stream.read(BLOCK)):
                text = decoder.decode(block)
                yield text[max(start - position, 0) : stop - position]
                position += len(text)
        status = file.path.stat()
    except (OSError, UnicodeDecodeError) as error:
        raise _changed(file) from error
    if (status.st_size, status.st_mtime_ns) != (file.bytes, file.modified):
        raise _changed(file)


def _changed(file: TextFile) -> DataError:
    return DataError(f"'{file.path}' changed while it was read: start again when nothing writes to it")


class FileCorpus(Corpus, ABC):
    """A corpus of files, or parts of files, for each split; a subclass says which."""

    splits: dict[str, list[Part]]

    def documents(self, split: str) -> Iterator[TextChunk]:
        for part in self.splits[split]:
            yield from pieces(part)

    @property
    def fingerprint(self) -> str:
        ordered = [(split, part) for split in SPLITS for part in self.splits[split]]
        parts = [(split, part.file.sha256, part.start, part.stop) for split, part in ordered]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        sizes = {part.file.path: part.file.bytes for parts in self.splits.values() for part in parts}
        return {"files": len(sizes), "bytes": sum(sizes.values())}


def split_end(files: list[TextFile], val_fraction: float) -> dict[str, list[Part]]:
    """Read all files as one long text, whose last part, by characters, is for validation.

    The rule is the same for one file and for many (they follow each other in order, with nothing between):
    with n characters in all, the first ``int(n * (1 - val_fraction))`` are for training. The file in which
    that border lies is in both splits, with another part in each.

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
    splits: dict[str, list[Part]] = {split: [] for split in SPLITS}
    for file in files:
        at = min(max(border, 0), file.characters)
        if at > 0:
            splits["train"].append(Part(file, 0, at))
        if at < file.characters:
            splits["validation"].append(Part(file, at, file.characters))
        border -= file.characters
    return splits


def check_fraction(val_fraction: float) -> None:
    """Raise a ConfigError unless a part, but not all, of the text is for validation."""
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
