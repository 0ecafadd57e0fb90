"""The standard library of the running interpreter: real text on every machine, never redistributed."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.core.errors import DataError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data.corpora.base import SPLITS
from modular_gpt.data.corpora.files import FileCorpus, FileSlice, scan
from modular_gpt.data.documents import TextConfig

# Directories of tests, generated tables and near-duplicates, which would lower the loss below that of other code.
EXCLUDED = {
    *("site-packages", "dist-packages", "__pycache__", "test", "tests"),
    *("idlelib", "turtledemo", "ensurepip", "encodings", "pydoc_data"),
}
FEWEST = 100  # source files; an installation with fewer has been stripped


class PythonStdlib(FileCorpus, name="python_stdlib"):
    """The sources of Python's standard library, about 9 MB, found on this machine; no download."""

    @dataclass
    class Config(TextConfig):
        """Settings of the standard library as a corpus."""

    def __init__(self, config: ComponentConfig) -> None:
        super().__init__(config)
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = sources(root)
        splits: dict[str, list[FileSlice]] = {split: [] for split in SPLITS}
        for name in sorted(paths):
            file = scan(paths[name], name)
            split = "validation" if for_validation(name) else "train"
            splits[split].append(FileSlice(file, 0, file.characters))
        self.splits = splits
        if len(paths) < FEWEST or not all(splits.values()):
            raise DataError(
                f"the sources of Python's standard library are missing (found {len(paths)} files in {root}):"
                " use a text of your own with data=text data.path=<file or pattern>"
            )

    def describe(self) -> Mapping[str, int | str]:
        return {"python": platform.python_version(), **super().describe()}


def sources(root: Path) -> dict[str, Path]:
    """The Python files below ``root`` by their relative path, without the excluded directories."""
    found = {}
    for folder, directories, files in os.walk(root):
        directories[:] = [name for name in directories if not _excluded(name)]  # the others are not visited
        paths = (Path(folder) / name for name in files if name.endswith(".py"))
        found.update({path.relative_to(root).as_posix(): path for path in paths if path.is_file()})
    return found


def _excluded(directory: str) -> bool:
    return directory in EXCLUDED or directory.startswith("config-")


def for_validation(name: str) -> bool:
    """Whether a file is for validation, by a hash of its relative path, the same in all versions of Python."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0
