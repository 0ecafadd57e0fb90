"""The display of a training that Python code starts: a progress bar, and in a notebook a curve that is redrawn."""

import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from tqdm import TqdmWarning

from modular_gpt.training.history import History
from modular_gpt.training.metrics import Entry, MetricsLog
from modular_gpt.training.recorder import BAR, PAUSE, QUIET, NullRecorder, duration, format_entry, printable_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which displays figures; IPython in a terminal displays none."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def bar_class() -> type:
    """The class of progress bars for this environment: widgets in a notebook that has ipywidgets, else text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # that ipywidgets are missing
        from tqdm.auto import tqdm
    found: type = tqdm
    return found


class LiveCurve:
    """The losses of a training in the output of a notebook's cell, redrawn at most once in ``PAUSE`` drawing times."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.handle: Any = None  # of IPython's display
        self.drawn, self.drawing = 0.0, 0.0  # the time of the last drawing, and its duration, in seconds

    def update(self, last: bool = False) -> None:
        """Redraw the figure if the pause since the last drawing is over; with ``last``, in any case."""
        begun = time.perf_counter()
        if not last and begun - self.drawn < PAUSE * self.drawing:
            return
        self._show(self.history.plot())
        self.drawn = time.perf_counter()
        self.drawing = self.drawn - begun

    def _show(self, figure: "Figure") -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)


class NotebookRecorder(NullRecorder):
    """Records metrics in a History and shows them while training runs: the counterpart of ``Recorder`` in a program."""

    def __init__(
        self, history: History, max_steps: int, start: int = 0, quiet: bool = False, log: MetricsLog | None = None
    ) -> None:
        """Continue after step ``start``; log: metrics.jsonl of a training that can be resumed"""
        super().__init__()
        self.history, self.max_steps, self.quiet, self.log = history, max_steps, quiet, log
        self.curve = LiveCurve(history) if in_notebook() and not quiet else None
        has_bar = not quiet and (in_notebook() or sys.stderr.isatty())  # otherwise lines are printed at intervals
        self.bar = bar_class()(total=max_steps, initial=start, disable=not has_bar, leave=False, bar_format=BAR)
        self.last_line = time.perf_counter()

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            self.bar.write(text, file=sys.stdout)

    def step(self) -> None:
        """Note that one more step is done."""
        self.bar.update()

    def training(self, entry: Entry) -> None:
        """Record the metrics of the steps since the last entry."""
        self._record(entry)
        self.bar.set_postfix_str(format_entry(entry), refresh=False)
        if self.bar.disable and time.perf_counter() - self.last_line > QUIET:
            self.last_line = time.perf_counter()
            left = (self.max_steps - entry["step"]) * entry["seconds"] / entry["step"]
            self.say(f"step {entry['step']:>6.0f}/{self.max_steps}  {duration(left)} left  {format_entry(entry)}")

    def evaluation(self, entry: Entry, text: str | None, best: bool) -> None:
        """Record the metrics of an evaluation, and print the sample that was generated at it."""
        self._record(entry)
        if self.curve is None:
            loss = f"validation loss {entry['validation_loss']:.4f}"
            self.say(f"step {entry['step']:>6.0f}/{self.max_steps}  {loss}{'  best so far' if best else ''}")
        else:
            self.curve.update()
        if text is not None:
            self.say("\n".join(f"    | {printable_text(line)}" for line in text.split("\n")))

    def _record(self, entry: Entry) -> None:
        self.history.add(entry)
        if self.log is not None:
            self.log.add(entry)

    def close(self) -> None:
        """End the bar, and draw the last curve."""
        self.bar.close()
        if self.curve is not None and self.history.entries:
            self.curve.update(last=True)
