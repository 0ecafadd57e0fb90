"""Ctrl-C and SIGTERM as a wish to stop at the next good moment."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulShutdown:
    """A signal that has asked to stop.

    While ``gentle`` is entered, the first signal only sets it, so that a loop can save and end. Elsewhere, and from
    the second signal on, the signal ends the work at once (KeyboardInterrupt, or SystemExit for SIGTERM).
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        """agree: a number of this process -> the highest of all processes that train together"""
        self.signal: int | None = None
        self.agree = agree

    def requested(self) -> bool:
        """Whether to stop now; all processes ask at the same points, and get the same answer."""
        number = self.agree(self.signal or 0)
        if number:
            self.signal = number
        return number > 0

    @contextmanager
    def catch(self) -> Iterator[None]:
        """Catch signals while the block runs; in threads other than the main one signals stay as they are."""
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
        if self.signal is not None:
            end_at_once(number, frame)
        self.signal = number


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
