"""Ctrl-C and SIGTERM end a training at the next moment at which nothing is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """A request to stop, made by a signal.

    While ``catch`` is entered, the first signal is only noted, so that a loop can save and end, and a line on stderr
    says so. Elsewhere, from the second signal on, and while ``nothing_to_save``, a signal ends the work at once
    (KeyboardInterrupt, or SystemExit for SIGTERM).
    """

    def __init__(self, agree: Callable[[int], int] = int, tells: bool = True) -> None:
        """agree: a number of this process -> the highest of all processes that train together
        tells: whether this process is the one that writes to stderr
        """
        self.signal: int | None = None
        self.agree = agree
        self.tells = tells
        self.nothing_to_save = False
        self._promise = ""

    def requested(self) -> bool:
        """Whether to stop now; all processes ask at the same points, and get the same answer."""
        number = self.agree(self.signal or 0)
        if number:
            self.signal = number
        return number > 0

    @contextmanager
    def catch(self, promise: str = "this step is finished and saved") -> Iterator[None]:
        """Catch signals while the block runs; in threads other than the main one signals stay as they are.

        promise: what happens after the first signal, in a clause
        """
        self._promise = promise
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Any] = {number: signal.signal(number, self._wish) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wish(self, number: int, frame: FrameType | None) -> None:
        if self.nothing_to_save:
            self._tell("stopping at once: no step is done yet, so that there is nothing to save")
            end_at_once(number, frame)
        if self.signal is not None:
            end_at_once(number, frame)
        self.signal = number
        self._tell(f"stopping: {self._promise}; Ctrl-C again ends at once")

    def _tell(self, sentence: str) -> None:
        if self.tells:  # not by print, whose buffer this handler may have interrupted
            os.write(2, f"\n{sentence}\n".encode())


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler under which files being written are cleaned up before the process ends."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def orderly() -> Iterator[None]:
    """Let SIGTERM unwind the stack, as Ctrl-C does, instead of ending the process where it stands."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
