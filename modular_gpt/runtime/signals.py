"""Handling of SIGINT (Ctrl-C) and SIGTERM: graceful shutdown, deferred signals, and exits by exception."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object] | int | None  # as ``signal.signal`` returns and takes it


class GracefulShutdown:
    """Turns the first signal into a request to stop, so that a loop can finish its step and save.

    Inside ``catch``, the first signal is stored and a message is printed to stderr. A second signal, or any signal
    while ``nothing_to_save`` is true, raises KeyboardInterrupt, or SystemExit for SIGTERM.

    signal: number of the received signal, or None
    nothing_to_save: whether a shutdown would have no result to save
    """

    def __init__(self, agree: Callable[[int], int] = int, prints: bool = True) -> None:
        """agree: maps a number of this process to the maximum over all processes of the training
        prints: whether this process prints to stderr
        """
        self.signal: int | None = None
        self.agree = agree
        self.prints = prints
        self.nothing_to_save = False
        self._promise = ""

    def requested(self) -> bool:
        """Whether a process has received a signal. Collective: all processes get the same answer."""
        number = self.agree(self.signal or 0)
        if number:
            self.signal = number
        return number > 0

    @contextmanager
    def catch(self, promise: str = "this step is finished and saved") -> Iterator[None]:
        """Context manager: catch signals. In threads other than the main one, it does nothing.

        promise: clause for the printed message: the effect of the first signal
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
            self._print("stopping at once: no step is done yet, so there is nothing to save")
            raise_for_signal(number, frame)
        if self.signal is not None:
            raise_for_signal(number, frame)
        self.signal = number
        self._print(f"stopping: {self._promise}; Ctrl-C again ends at once")

    def _print(self, sentence: str) -> None:
        if self.prints:  # not with print, whose buffer the signal may have interrupted
            os.write(2, f"\n{sentence}\n".encode())


def raise_for_signal(number: int, frame: FrameType | None) -> None:
    """Signal handler that raises KeyboardInterrupt or SystemExit, so that files being written are cleaned up."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Context manager: a signal that arrives inside is handled at the end."""
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


def pending_errors(end: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that were being handled when ``end`` was raised, the most recent first.

    A launcher sends SIGTERM to all processes when one is lost; the SystemExit must not hide the error that explains it.
    """
    error = end.__context__
    while error is not None:
        yield error
        error = error.__context__


@contextmanager
def raise_on_sigterm() -> Iterator[None]:
    """Context manager: SIGTERM raises SystemExit in the main thread instead of killing the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_for_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
