"""Ctrl-C and SIGTERM end a training at the next point where nothing is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object] | int | None  # as ``signal.signal`` returns and takes it


class GracefulShutdown:
    """A request to stop, made by a signal.

    Inside ``catch``, the first signal is stored in ``signal`` and announced on stderr, so that a loop can save and end.
    Outside, from the second signal on, and while ``nothing_to_save``, a signal ends the work at once
    (KeyboardInterrupt, or SystemExit for SIGTERM).
    """

    def __init__(self, agree: Callable[[int], int] = int, prints: bool = True) -> None:
        """agree: a number of this process -> the largest of all processes that train together
        prints: whether this process writes to stderr
        """
        self.signal: int | None = None
        self.agree = agree
        self.prints = prints
        self.nothing_to_save = False
        self._promise = ""

    def requested(self) -> bool:
        """Whether to stop now. Collective: all processes call it at the same points and get the same answer."""
        number = self.agree(self.signal or 0)
        if number:
            self.signal = number
        return number > 0

    @contextmanager
    def catch(self, promise: str = "this step is finished and saved") -> Iterator[None]:
        """Context manager: catch signals. In threads other than the main one, signals stay as they are.

        promise: a clause about what happens after the first signal
        """
        self._promise = promise
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[int, Handler] = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.nothing_to_save:
            self._print("stopping at once: no step is done yet, so that there is nothing to save")
            end_at_once(number, frame)
        if self.signal is not None:
            end_at_once(number, frame)
        self.signal = number
        self._print(f"stopping: {self._promise}; Ctrl-C again ends at once")

    def _print(self, sentence: str) -> None:
        if self.prints:  # not by print, whose buffer this handler may have interrupted
            os.write(2, f"\n{sentence}\n".encode())


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler that ends the process by an exception, so that files being written are cleaned up."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def deferred() -> Iterator[None]:
    """Context manager: a signal that arrives inside is handled at the end, so that it interrupts nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before: dict[int, Handler] = {
        number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


def interrupted(end: BaseException) -> Iterator[BaseException]:
    """The errors on their way when ``end`` was raised, the latest first.

    A launcher ends all processes as soon as one is lost, and its SIGTERM must not hide why.
    """
    error = end.__context__
    while error is not None:
        yield error
        error = error.__context__


@contextmanager
def orderly() -> Iterator[None]:
    """Context manager: SIGTERM unwinds the stack, as Ctrl-C does, instead of killing the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
