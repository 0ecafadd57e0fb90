"""What people and programs see of a run while it goes on: a progress bar, metrics.jsonl, metrics.csv, samples.txt."""

import csv
import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from modular_gpt.core.atomic_files import write_text
from modular_gpt.training.estimate import size
from modular_gpt.training.loggers import Loggers
from modular_gpt.training.mfu import ThroughputMonitor

METRICS, TABLE, SAMPLES = "metrics.jsonl", "metrics.csv", "samples.txt"
HEADING = "=== step "  # in samples.txt; lines of samples are indented
QUIET = 10.0  # seconds between lines where there is no terminal for a bar

BAR = "{n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}"

Entry = dict[str, float]


class Averages:
    """Means of named scalars since they were last read, kept on the device so that adding one waits for nothing."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Take one step's values, scalars on the device."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def read(self) -> Entry:
        """The mean per step of each name; the sums start again at nothing."""
        names, steps = list(self.sums), max(1, self.steps)
        values = torch.stack([self.sums[name] for name in names]).tolist() if names else []
        self.sums, self.steps = {}, 0
        return {name: value / steps for name, value in zip(names, values, strict=True)}


class Silent:
    """What a process has in a Recorder's place where another one records."""

    def __init__(self) -> None:
        self.outcome: dict[str, Any] = {}

    def say(self, text: str) -> None: ...

    def step(self) -> None: ...

    def training(self, entry: Entry) -> None: ...

    def evaluation(self, entry: Entry, text: str | None, best: bool) -> None: ...

    def close(self) -> None: ...


class Recorder:
    """Writes a run's figures and samples into its directory and shows them."""

    def __init__(
        self,
        directory: Path,
        max_steps: int,
        meter: ThroughputMonitor,
        loggers: Loggers,
        start: int = 0,
        evaluated: int = 0,
        quiet: bool = False,
    ) -> None:
        """Go on after step ``start``, the last evaluation having been at ``evaluated``; later entries are dropped."""
        self.directory, self.meter, self.loggers = directory, meter, loggers
        self.outcome: dict[str, Any] = {}  # figures of the report, for the loggers
        self.quiet = quiet
        forget_after(directory, start, evaluated)
        self.file = (directory / METRICS).open("a", encoding="utf-8")
        hidden = quiet or not has_terminal()  # then lines take the bar's place
        self.bar = tqdm(total=max_steps, initial=start, disable=hidden, dynamic_ncols=True, leave=False, bar_format=BAR)
        self.max_steps = max_steps
        self.last_line = 0.0

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def step(self) -> None:
        """One more step is done."""
        self.bar.update()

    def training(self, entry: Entry) -> None:
        """Figures of the steps since the last entry; how much of the device they used is added."""
        entry = {**entry, **self.meter.read(entry["tokens_per_second"])}
        self._write(entry)
        self.bar.set_postfix_str(shown(entry), refresh=False)
        now = time.perf_counter()
        if self.bar.disable and now - self.last_line > QUIET:
            self.last_line = now
            left = self.remaining(entry)
            self.say(f"step {entry['step']:>6.0f}/{self.max_steps}  {left} left  {shown(entry)}")

    def evaluation(self, entry: Entry, text: str | None, best: bool) -> None:
        """Figures of an evaluation, and the text that was generated at it."""
        self._write(entry)
        self.save_table()
        self.say(
            f"step {entry['step']:>6.0f}/{self.max_steps}  validation loss {entry['validation_loss']:.4f}"
            f"  ({entry['bits_per_byte']:.3f} bits per byte){'  best so far' if best else ''}"
        )
        if text is not None:
            quoted = "\n".join(f"    | {harmless(line)}" for line in text.split("\n"))
            with (self.directory / SAMPLES).open("a", encoding="utf-8") as file:
                file.write(f"{HEADING}{entry['step']}\n{quoted}\n\n")
            self.say(quoted)
            self.loggers.text(int(entry["step"]), text)

    def remaining(self, entry: Entry) -> str:
        """How long the steps that are left will take at the speed of the last ones, as h:mm:ss."""
        if not entry["tokens_per_second"]:
            return "?"
        tokens = (self.max_steps - entry["step"]) * entry["tokens"] / entry["step"]
        return duration(tokens / entry["tokens_per_second"])

    def save_table(self) -> None:
        """Write metrics.csv anew: all entries, a column for each figure that any of them has."""
        entries = read_metrics(self.directory)
        columns = dict.fromkeys(name for entry in entries for name in entry)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)
        write_text(self.directory / TABLE, text.getvalue())

    def _write(self, entry: Entry) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()
        self.loggers.scalars(int(entry["step"]), {name: value for name, value in entry.items() if name != "step"})

    def close(self) -> None:
        """End the bar, the files and the loggers."""
        self.bar.close()
        self.file.close()
        self.save_table()
        self.loggers.finish(self.outcome)


def shown(entry: Entry) -> str:
    """The figures of a training entry in a line for people."""
    nothing = math.nan  # where every update since the last entry was left out
    figures = [
        f"loss {entry.get('loss', nothing):.3f}",
        f"lr {entry['learning_rate']:.1e}",
        f"grad {entry.get('gradient_norm', nothing):.2f}",
        f"{entry['tokens_per_second']:,.0f} tok/s",
    ]
    figures += [f"mfu {entry['mfu']:.0%}"] if "mfu" in entry else []
    figures += [size(entry["memory_bytes"])] if "memory_bytes" in entry else []
    return "  ".join(figures)


def has_terminal() -> bool:
    """Whether there is a terminal, of a known width, for a bar to be drawn on."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def harmless(text: str) -> str:
    """The text with U+FFFD for control characters, which untrained models write and terminals obey."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def read_metrics(directory: Path) -> list[Entry]:
    """The entries of metrics.jsonl; a last line that was cut off by a crash is left out."""
    path = directory / METRICS
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def forget_after(directory: Path, step: int, evaluated: int) -> None:
    """Drop what an interrupted run wrote past the point from which it goes on: that is computed again."""
    if (directory / METRICS).is_file():
        entries = [
            entry
            for entry in read_metrics(directory)
            if entry["step"] <= (evaluated if "validation_loss" in entry else step)
        ]
        write_text(directory / METRICS, "".join(json.dumps(entry) + "\n" for entry in entries))
    path = directory / SAMPLES
    if path.is_file():
        kept, keep = [], True
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if line.startswith(HEADING):
                keep = int(line.removeprefix(HEADING)) <= evaluated
            kept += [line] if keep else []
        write_text(path, "".join(kept))


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
