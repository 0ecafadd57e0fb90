"""The metrics of a run: metrics.jsonl, the same entries as a table in metrics.csv, and the points of its curves."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.json_files import parse_json
from modular_gpt.training.run_directory import RunFiles

METRICS, TABLE = "metrics.jsonl", "metrics.csv"
MAX_POINTS = 4000  # of a curve that is drawn; a longer one is thinned

Entry = dict[str, float]
Points = list[tuple[float, float]]


class MetricsLog:
    """Appends entries to metrics.jsonl and metrics.csv.

    The table is written anew, from metrics.jsonl, for an entry with a column that no entry had before.
    """

    def __init__(self, files: RunFiles, step: int = 0, evaluated: int = 0) -> None:
        """Continue after ``step``, whose last evaluation was at ``evaluated``; later entries are dropped."""
        self.files = files
        self.columns: list[str] = []
        files.attempt(METRICS, lambda: drop_after(files.directory, step, evaluated))
        if (files.directory / METRICS).is_file():
            self._write_table()

    def add(self, entry: Entry) -> None:
        """Append one entry."""
        self.files.append(METRICS, json.dumps(entry) + "\n")
        if entry.keys() <= set(self.columns):
            self.files.append(TABLE, _rows(self.columns, [entry]))
        else:
            self._write_table()

    def _write_table(self) -> None:
        """Rewrite metrics.csv with a column for each name in any entry."""
        entries = [*read_metrics(self.files.directory), *parse_entries(self.files.unwritten(METRICS).splitlines())]
        self.columns = list(dict.fromkeys(name for entry in entries for name in entry))
        self.files.replace(TABLE, _rows(self.columns, [dict(zip(self.columns, self.columns, strict=True)), *entries]))


def _rows(columns: list[str], entries: Iterable[dict[str, float] | dict[str, str]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(entries)
    return text.getvalue()


def read_metrics(directory: Path) -> list[Entry]:
    """The entries of metrics.jsonl; lines that a crash cut off, or that are damaged, are left out."""
    path = directory / METRICS
    return (
        list(parse_entries(path.read_text(encoding="utf-8", errors="replace").splitlines())) if path.is_file() else []
    )


def parse_entries(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries of lines of metrics.jsonl; incomplete and damaged lines are left out."""
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "step" in entry and all(isinstance(v, (int, float)) for v in entry.values()):
            yield entry


def drop_after(directory: Path, step: int, evaluated: int) -> None:
    """Drop entries past ``step``, and evaluations past ``evaluated``, which a resumed run computes again."""
    if not (directory / METRICS).is_file():
        return
    entries = [
        entry
        for entry in read_metrics(directory)
        if entry["step"] <= (evaluated if "validation_loss" in entry else step)
    ]
    write_text(directory / METRICS, "".join(json.dumps(entry) + "\n" for entry in entries))


class Curves:
    """The points that loss.png shows, as (step, value), and the best evaluation; a long training curve is thinned."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.loss: Points = []
        self.learning_rate: Points = []
        self.validation: Points = []
        self.best: Entry | None = None
        self.tokens = 0.0
        self._stride, self._count = 1, 0
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Add one entry of metrics.jsonl."""
        self.tokens = max(self.tokens, entry.get("tokens", 0.0))
        if "validation_loss" in entry:
            self.validation += _point(entry, "validation_loss")
            before = math.inf if self.best is None else self.best["validation_loss"]
            if self.best is None or entry["validation_loss"] < before or math.isnan(before):
                self.best = entry
            return
        if self._count % self._stride == 0:
            self.loss += _point(entry, "loss")
            self.learning_rate += _point(entry, "learning_rate")
        self._count += 1
        if len(self.learning_rate) > MAX_POINTS:
            self.loss, self.learning_rate, self._stride = self.loss[::2], self.learning_rate[::2], 2 * self._stride


def _point(entry: Entry, name: str) -> Points:
    """(step, value) of a number, where an entry has it and it is finite."""
    return [(entry["step"], entry[name])] if math.isfinite(entry.get(name, math.nan)) else []
