"""Search for files by paths, patterns and folders."""

import codecs
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modular_gpt.core.errors import ConfigError, DataError

SNIFFED = 2**13  # bytes at the beginning of a file that decide whether it is text
TEXT_NAMES = (".txt", ".md")  # suffixes of files that are not skipped but an error if they are not UTF-8


@dataclass
class FoundFiles:
    """The files that were found, and the number of files that were skipped in folders by reason."""

    files: list[Path]
    skipped: Counter[str] = field(default_factory=Counter)


def path_patterns(value: object, setting: str = "data.path") -> list[str]:
    """Paths and patterns as a list, from one or several of them, each a string or a Path.

    Raises:
        ConfigError: ``value`` is neither a path nor a list of paths, or a path is empty.
    """
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if not listed or not all(isinstance(item, (str, Path)) and str(item) for item in listed):
        raise ConfigError(f"{setting} must be a path, a pattern or a list of these, got {value!r}")
    return [str(item) for item in listed]


def skip_binary(path: Path) -> str | None:
    """The reason to skip a file in a folder of texts, by its first bytes; None: it is read."""
    try:
        with path.open("rb") as file:
            beginning = file.read(SNIFFED)
        if b"\0" in beginning:
            return "binary"
        codecs.getincrementaldecoder("utf-8")().decode(beginning, final=len(beginning) < SNIFFED)
    except UnicodeDecodeError:
        return None if path.suffix.lower() in TEXT_NAMES else "binary"
    except OSError:
        return None  # an error is raised when it is read
    return None


def find_files(patterns: Iterable[str], setting: str = "data.path") -> list[Path]:
    """The files of ``search_files``, without the number of files that were skipped.

    Raises:
        DataError: as ``search_files``.
    """
    return search_files(patterns, setting).files


def search_files(
    patterns: Iterable[str], setting: str = "data.path", skip: Callable[[Path], str | None] = skip_binary
) -> FoundFiles:
    """The files that paths, patterns and folders name, sorted within a pattern.

    ``**`` crosses directories and ``~`` is the home directory. A folder stands for the files in it and below it;
    hidden ones and those for which ``skip`` returns a reason are skipped there. A file that several paths or links
    name is found once, at its first place. ``setting``: name of the setting in messages.

    Raises:
        DataError: a path does not exist, a pattern matches no file, or a folder has none that is not skipped.
    """
    skipped: Counter[str] = Counter()
    found: dict[object, Path] = {}
    for pattern in patterns:
        for path in _matches(pattern, setting, skip, skipped):
            found.setdefault(identity(path), path)
    return FoundFiles(list(found.values()), skipped)


def _matches(pattern: str, setting: str, skip: Callable[[Path], str | None], skipped: Counter[str]) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return _in_folder(path, setting, skip, skipped)
    if path.exists() or path.is_symlink():
        return [path]
    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
    files = [match for match in matches if match.is_file()]
    if not files:
        problem = "no file matches" if glob.has_magic(pattern) else "there is no file"
        raise DataError(f"{problem} {pattern!r} (seen from {Path.cwd()}): correct {setting}")
    return files


def _in_folder(folder: Path, setting: str, skip: Callable[[Path], str | None], skipped: Counter[str]) -> list[Path]:
    files = []
    in_folder: Counter[str] = Counter()
    for path in sorted(_below(folder, in_folder)):
        if reason := skip(path):
            in_folder[reason] += 1
        else:
            files.append(path)
    if not files:
        reasons = f" ({in_words(in_folder)} skipped)" if in_folder.total() else ""
        raise DataError(f"the folder '{folder}' has no file to read{reasons}: correct {setting}")
    skipped += in_folder
    return files


def _below(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The regular files in a folder and below it, without hidden ones; links to folders are not followed."""
    for directory, subdirectories, names in os.walk(folder):
        for entries in (subdirectories, names):
            skipped["hidden"] += sum(name.startswith(".") for name in entries)
            entries[:] = [name for name in entries if not name.startswith(".")]
        yield from (path for path in (Path(directory) / name for name in names) if path.is_file())


def in_words(counts: Counter[str]) -> str:
    """Counts as a phrase, such as ``3 hidden, 1 binary``."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)


def identity(path: Path) -> object:
    """A key that is equal for all paths and links to the same file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return (status.st_dev, status.st_ino) if status.st_ino else path.resolve()
