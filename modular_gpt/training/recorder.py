"""The output of a run while it trains: progress bar, metrics, samples, plot and loggers."""

import math
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.training.estimate import format_bytes
from modular_gpt.training.loggers import Loggers
from modular_gpt.training.metrics import Curves, Entry, MetricsLog, read_metrics
from modular_gpt.training.mfu import ThroughputMonitor
from modular_gpt.training.plot import PLOT, plot_losses
from modular_gpt.training.run_directory import RunFiles

SAMPLES = "samples.txt"
HEADING = "=== step "  # in samples.txt; lines of samples are indented
QUIET = 10.0  # seconds between lines where there is no terminal for a bar
PAUSE = 20.0  # between two drawings of the plot, as a multiple of the time that a drawing takes
FIRST_DRAWING = 0.25  # seconds that the first drawing takes, roughly

BAR = "{n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}"


class Averages:
    """Means of named scalars since they were last read, kept on the device so that ``add`` never waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's values, scalar tensors on the device."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def read(self) -> Entry:
        """The mean per step of each name; resets the sums."""
        names, steps = list(self.sums), max(1, self.steps)
        values = torch.stack([self.sums[name] for name in names]).tolist() if names else []
        self.sums, self.steps = {}, 0
        return {name: value / steps for name, value in zip(names, values, strict=True)}


class NullRecorder:
    """A Recorder that records nothing, for the processes other than the first."""

    def __init__(self) -> None:
        self.outcome: PlainDict = {}

    def say(self, text: str) -> None: ...

    def step(self) -> None: ...

    def training(self, entry: Entry) -> None: ...

    def evaluation(self, entry: Entry, text: str | None, best: bool) -> None: ...

    def measuring(self, done: int, total: int) -> None: ...

    def close(self) -> None: ...


class Recorder:
    """Writes the metrics and samples of a run into its directory and prints them. Its failures do not end training."""

    def __init__(
        self,
        files: RunFiles,
        max_steps: int,
        monitor: ThroughputMonitor,
        loggers: Loggers,
        start: int = 0,
        evaluated: int = 0,
        quiet: bool = False,
    ) -> None:
        """Continue after step ``start``, whose last evaluation was at ``evaluated``; later entries are dropped."""
        self.files, self.monitor, self.loggers = files, monitor, loggers
        self.outcome: PlainDict = {}  # numbers of the report, for the loggers
        self.quiet = quiet
        self.metrics = MetricsLog(files, start, evaluated)
        files.attempt(SAMPLES, lambda: drop_samples_after(files.directory, evaluated))
        self.curves = Curves(read_metrics(files.directory))
        self.drawn, self.drawing = time.perf_counter(), FIRST_DRAWING
        hidden = quiet or not has_terminal()  # then lines take the bar's place
        self.bar = tqdm(total=max_steps, initial=start, disable=hidden, dynamic_ncols=True, leave=False, bar_format=BAR)
        self.max_steps = max_steps
        self.last_line = 0.0

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def step(self) -> None:
        """Note that one more step is done."""
        self.bar.update()

    def training(self, entry: Entry) -> None:
        """Record the metrics of the steps since the last entry; those of the device are added."""
        entry = {**entry, **self.monitor.read(entry["tokens_per_second"])}
        self._record(entry)
        self.bar.set_postfix_str(format_entry(entry), refresh=False)
        if self._line_due():
            left = self.remaining(entry)
            self.say(f"step {entry['step']:>6.0f}/{self.max_steps}  {left} left  {format_entry(entry)}")

    def evaluation(self, entry: Entry, text: str | None, best: bool) -> None:
        """Record the metrics of an evaluation, and the sample that was generated at it."""
        self._record(entry)
        details = [f"{entry['bits_per_byte']:.3f} bits per byte"] if "bits_per_byte" in entry else []
        details += [f"accuracy {entry['validation_accuracy']:.2%}"] if "validation_accuracy" in entry else []
        details += [f"exact match {entry['exact_match']:.2%}"] if "exact_match" in entry else []
        ends = [f"({', '.join(details)})"] * bool(details) + ["best so far"] * best
        loss = f"validation loss {entry['validation_loss']:.4f}"
        self.say("  ".join([f"step {entry['step']:>6.0f}/{self.max_steps}", loss, *ends]))
        if text is not None:
            quoted = "\n".join(f"    | {printable_text(line)}" for line in text.split("\n"))
            self.files.append(SAMPLES, f"{HEADING}{entry['step']}\n{quoted}\n\n")
            self.say(quoted)
            self.loggers.text(int(entry["step"]), text)
        if time.perf_counter() - self.drawn > PAUSE * self.drawing:
            self.draw()

    def measuring(self, done: int, total: int) -> None:
        """Show the progress of the final evaluation, in batches."""
        self.bar.set_postfix_str(f"final evaluation {done}/{total}")
        if self._line_due():
            self.say(f"final evaluation: {done} of {total} batches")

    def _line_due(self) -> bool:
        """Whether to print a progress line now in place of the bar; if so, the interval begins again."""
        now = time.perf_counter()
        due = bool(self.bar.disable) and now - self.last_line > QUIET
        if due:
            self.last_line = now
        return due

    def remaining(self, entry: Entry) -> str:
        """The time that the remaining steps take at the speed of the last ones, as h:mm:ss."""
        if not entry["tokens_per_second"]:
            return "?"
        tokens = (self.max_steps - entry["step"]) * entry["tokens"] / entry["step"]
        return duration(tokens / entry["tokens_per_second"])

    def _record(self, entry: Entry) -> None:
        self.metrics.add(entry)
        self.curves.add(entry)
        self.loggers.scalars(int(entry["step"]), {name: value for name, value in entry.items() if name != "step"})

    def draw(self) -> None:
        """Draw loss.png."""
        begun = time.perf_counter()
        self.files.attempt(PLOT, lambda: plot_losses(self.files.directory, self.curves))
        self.drawn = time.perf_counter()
        self.drawing = self.drawn - begun

    def close(self) -> None:
        """End the bar, the files and the loggers."""
        self.bar.close()
        self.files.flush()
        self.draw()
        self.loggers.finish(self.outcome)


def format_entry(entry: Entry) -> str:
    """Format the metrics of a training entry as a line of text; nan where all its updates were skipped."""
    numbers = [
        f"loss {entry.get('loss', math.nan):.3f}",
        f"lr {entry['learning_rate']:.1e}",
        f"grad {entry.get('gradient_norm', math.nan):.2f}",
        f"{entry['tokens_per_second']:,.0f} tok/s",
    ]
    numbers += [f"mfu {entry['mfu']:.0%}"] if "mfu" in entry else []
    numbers += [format_bytes(entry["memory_bytes"])] if "memory_bytes" in entry else []
    return "  ".join(numbers)


def has_terminal() -> bool:
    """Whether the output is a terminal of known width, on which a bar can be drawn."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return False


def printable_text(text: str) -> str:
    """Replace control characters by U+FFFD: untrained models generate them, and terminals execute them."""
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)


def drop_samples_after(directory: Path, evaluated: int) -> None:
    """Drop the samples of samples.txt that an interrupted run wrote after its evaluation at step ``evaluated``."""
    path = directory / SAMPLES
    if not path.is_file():
        return
    lines, keep = [], True
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        if line.startswith(HEADING):
            step = line.removeprefix(HEADING).strip()
            keep = step.isdigit() and int(step) <= evaluated
        lines += [line] if keep else []
    write_text(path, "".join(lines))


def duration(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"
