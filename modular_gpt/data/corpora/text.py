"""Text in the user's files: whole files, or a column of files of rows."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home
from modular_gpt.data.corpora.columns import scan_rows, skip_without_rows, split_last_rows, whole_rows
from modular_gpt.data.corpora.file_search import identity, in_words, path_patterns, search_files, skip_binary
from modular_gpt.data.corpora.files import (
    FileCorpus,
    SourceFile,
    SourceSlice,
    check_fraction,
    scan,
    split_end,
    whole_files,
)
from modular_gpt.data.documents import TextConfig

F = TypeVar("F", bound=SourceFile)


class Text(FileCorpus, name="text"):
    """Your own UTF-8 files: data.path=<file, folder, pattern or list of these>."""

    @dataclass
    class Config(TextConfig):
        """Settings of a corpus of text files.

        path: A file, a folder (all text files below it), a pattern such as corpus/**/*.txt, or a list of these.
        val_fraction: Fraction of all characters (of all rows, with a column), at the end, that is held out for
            validation.
        validation: Files to validate on, given as path is. By default (null) val_fraction of path is held out.
        column: Read the texts in this column of .jsonl, .json, .csv, .tsv or .parquet files, each row as a document.
            By default (null) each file is one document.
        deduplicate: Read files of equal content only once.
        """

        path: Any = None  # str or list[str], a union that structured configs do not support
        val_fraction: float = 0.1
        validation: Any = None
        column: str | None = None
        deduplicate: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            expand_home(self, "path", "validation")
            check_fraction(self.val_fraction)
            if self.column == "":
                raise ConfigError("data.column must be the name of a column, got an empty one: leave it out")

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        assert isinstance(config, Text.Config)
        if not config.path:
            raise ConfigError("data=text needs data.path=<file or pattern>, such as data.path='corpus/**/*.txt'")
        self._counts: Counter[str] = Counter()
        if (column := config.column) is None:
            self.splits = self._read(config, scan, whole_files, split_end)
        else:
            self.splits = self._read(config, lambda path: scan_rows(path, column), whole_rows, split_last_rows)
        skipped = f"skipped in folders: {in_words(self._counts)}"
        self.notes = (*((skipped,) if self._counts.total() else ()), *self.notes)

    def _read(
        self,
        config: "Text.Config",
        scan_file: Callable[[Path], F],
        whole: Callable[[list[F]], Sequence[SourceSlice]],
        divide: Callable[[list[F], float], Mapping[str, Sequence[SourceSlice]]],
    ) -> Mapping[str, Sequence[SourceSlice]]:
        """The slices of both splits.

        scan_file: reads a file once; whole: returns slices of whole files
        divide: returns the slices of a training and a validation split of files
        """
        paths = self._files(config, "path")
        if not config.validation:
            return divide(self._distinct([scan_file(path) for path in paths], config), config.val_fraction)
        validation_paths = self._files(config, "validation")
        check_apart(paths, validation_paths)
        train = self._distinct([scan_file(path) for path in paths], config)
        validation = self._distinct([scan_file(path) for path in validation_paths], config)
        if config.deduplicate:
            check_different(train, validation)
        splits = {"train": whole(train), "validation": whole(validation)}
        for name, slices in splits.items():
            if not slices:
                setting = "path" if name == "train" else name
                raise DataError(f"the files of data.{setting} have no text: name files with text")
        return splits

    def _files(self, config: "Text.Config", setting: str) -> list[Path]:
        place = f"data.{setting}"
        skip = skip_binary if config.column is None else skip_without_rows
        found = search_files(path_patterns(getattr(config, setting), place), place, skip)
        self._counts += found.skipped
        return found.files

    def _distinct(self, files: list[F], config: "Text.Config") -> list[F]:
        """The files without those whose text equals that of an earlier one; without data.deduplicate, all files."""
        if not config.deduplicate:
            return files
        first: dict[str, F] = {}
        for file in files:
            first.setdefault(file.sha256, file)
        equal = sum(file.characters > 0 for file in files) - sum(file.characters > 0 for file in first.values())
        if equal:
            self.notes = (*self.notes, f"files left out, equal to earlier ones: {equal:,}")
        return list(first.values())


def check_apart(train: Sequence[Path], validation: Sequence[Path]) -> None:
    """Raise a DataError if a file is in both lists, also if it has several paths or links."""
    known = {identity(path) for path in train}
    for path in validation:
        if identity(path) in known:
            raise _trained_on(f"'{path}' is in data.path and in data.validation")


def check_different(train: Sequence[SourceFile], validation: Sequence[SourceFile]) -> None:
    """Raise a DataError if the text of a validation file equals that of a training file."""
    known = {file.sha256: file.path for file in train if file.characters}
    for file in validation:
        if file.sha256 in known:
            raise _trained_on(
                f"'{file.path}' of data.validation has the content of '{known[file.sha256]}' of data.path"
            )


def _trained_on(problem: str) -> DataError:
    return DataError(f"{problem}, so the model would be validated on training text: leave it out of one of the two")
