"""The results of trials in results.jsonl, one line each, of which a kill at any moment damages at most the last one."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.json_files import parse_json
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.training.run_directory import append_text

RESULTS = "results.jsonl"
SINGLE = "trial-*.json"  # of trials in processes whose launcher has not returned yet


class Journal:
    """The results in a directory, by the key of their trial."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.results: dict[str, PlainDict] = {}
        for result in self._read():
            self.results[result["key"]] = result
        self._collect()

    def _read(self) -> Iterator[PlainDict]:
        """Read the complete lines; one that a kill cut off is skipped."""
        path = self.directory / RESULTS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        yield from parsed(lines)

    def _collect(self) -> None:
        """Add the results that processes wrote before their launcher could return them."""
        for path in sorted(self.directory.glob(SINGLE)):
            for result in parsed([path.read_text(encoding="utf-8", errors="replace")]):
                self.add(result)
            path.unlink(missing_ok=True)

    def add(self, result: PlainDict) -> None:
        """Append a result and flush it to disk."""
        if result["key"] in self.results:
            return
        self.results[result["key"]] = result
        path = self.directory / RESULTS
        torn = path.is_file() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
        append_text(path, ("\n" if torn else "") + json.dumps(result) + "\n")
        with path.open("rb") as file:
            os.fsync(file.fileno())


def leave(directory: Path, result: PlainDict) -> None:
    """Write a result to a separate file, if the process of a launcher can reach the directory."""
    if directory.is_dir():
        write_text(directory / SINGLE.replace("*", result["key"]), json.dumps(result))


def parsed(lines: Iterable[str]) -> Iterator[PlainDict]:
    """Parse the lines that are complete; others are skipped."""
    for line in lines:
        try:
            result = parse_json(line)
        except ValueError:
            continue
        if isinstance(result, dict) and "key" in result:
            yield result
