"""A progress line on stderr for work that takes longer than a moment."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

DELAY = 2.0  # seconds before anything is shown
INTERVAL = 0.5  # seconds between two states on a terminal
LINE_INTERVAL = 10.0  # the same in a file or a pipe, where each state is a new line


class Update(Protocol):
    """Reports the units of work done so far, and the total once it is known."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


@contextmanager
def progress_line(
    label: str, total: int | None = None, stream: TextIO | None = None, unit: str = ""
) -> Iterator[Update]:
    """Context manager: show the progress of the block once it takes longer than ``DELAY`` seconds.

    Yields a function to report the units done so far. A thread writes the line, so that it is also updated while a
    library computes and reports nothing. On a terminal the line disappears at the end.

    label: names the work; total: units of work in all, None if unknown
    stream: where to write; None: stderr
    unit: noun of the units, in the plural, for the rate; empty: no rate is shown
    """
    state, over = _State(label, total, unit), threading.Event()
    writer = threading.Thread(target=_write, args=(state, over, stream or sys.stderr), daemon=True)
    writer.start()
    try:
        yield state.update
    finally:
        over.set()
        writer.join()


class _State:
    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit, self.done, self.begun = label, total, unit, 0, time.monotonic()

    def update(self, done: int, total: int | None = None) -> None:
        self.done = done
        self.total = self.total if total is None else total

    def __str__(self) -> str:
        share = f" {min(100, 100 * self.done // self.total)}%" if self.total else f" {self.done:,}" if self.done else ""
        return f"{self.label} ...{share} ({', '.join(self._times())})"

    def _times(self) -> Iterator[str]:
        """Seconds so far, units per second, and seconds left."""
        elapsed, done, total = time.monotonic() - self.begun, self.done, self.total
        yield f"{elapsed:.0f} s"
        if self.unit and done and elapsed:
            yield f"{done / elapsed:,.0f} {self.unit}/s"
        if total and elapsed and 0 < done < total:
            yield f"{(total - done) * elapsed / done:.0f} s left"


def _write(state: _State, over: threading.Event, stream: TextIO) -> None:
    terminal = not stream.closed and stream.isatty()
    width, wait = 0, DELAY
    while not over.wait(wait):
        line = str(state)
        width = max(width, len(line))
        _put(stream, f"\r{line:<{width}}" if terminal else f"{line}\n")
        wait = INTERVAL if terminal else LINE_INTERVAL
    if terminal and width:
        _put(stream, f"\r{'':<{width}}\r")


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):  # a closed stream ends no work
        pass
