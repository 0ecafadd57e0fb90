"""Run trials in this process, or in spawned processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from modular_gpt.comparison.trial import run_trial
from modular_gpt.core.errors import UserError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.runtime.signals import GracefulShutdown, raise_for_signal

Execute = Callable[[Sequence[PlainDict]], Iterator[PlainDict]]  # trials to results, in the order in which they finish


def in_this_process(trials: Sequence[PlainDict]) -> Iterator[PlainDict]:
    """Run the trials one after another."""
    return map(run_trial, trials)


def in_processes(jobs: int) -> Execute:
    """A function that runs trials in ``jobs`` processes, which it starts and ends."""

    def execute(trials: Sequence[PlainDict]) -> Iterator[PlainDict]:
        waiting, workers, stop = list(reversed(trials)), list[Worker](), GracefulShutdown(prints=False)
        with stop.catch():  # a signal between the creation of a process and its first message would leave it behind
            workers += [Worker() for _ in range(min(jobs, len(trials)))]
        try:
            if stop.signal is not None:
                raise_for_signal(stop.signal, None)
            for worker in workers:
                worker.send(waiting.pop())
            busy = {worker.connection: worker for worker in workers}
            while busy:
                for connection in wait(list(busy)):
                    worker = busy.pop(connection)  # type: ignore[call-overload]
                    result = worker.receive()
                    if waiting:
                        worker.send(waiting.pop())
                        busy[worker.connection] = worker
                    yield result
        finally:
            for worker in workers:
                worker.end()

    return execute


class Worker:
    """A spawned process that runs one trial after another; it ends when this process does."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def send(self, trial: PlainDict) -> None:
        """Start a trial."""
        self.connection.send(trial)

    def receive(self) -> PlainDict:
        """The result of the trial.

        Raises:
            UserError: the trial was refused, or its process was killed.
        """
        try:
            answer = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            raise UserError(
                f"the process of a trial ended with code {self.process.exitcode}, as when memory runs out: use fewer"
                " jobs; finished trials are kept"
            ) from error
        if isinstance(answer, BaseException):
            raise answer
        result: PlainDict = answer
        return result

    def end(self) -> None:
        """End the process, also during a trial."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def serve(connection: Connection) -> None:
    """Run the trials that arrive until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then ends this process
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()
    # in a thread, where training leaves the signals as they are, and SIGTERM ends the process at once
    thread = threading.Thread(target=answer_all, args=(connection,), daemon=True)
    thread.start()
    thread.join()


def answer_all(connection: Connection) -> None:
    """Answer every trial with its result or the exception it raised."""
    with suppress(EOFError, ConnectionError):
        while True:
            trial = connection.recv()
            try:
                connection.send(run_trial(trial))
            except UserError as error:
                connection.send(error)


def end_with(sentinel: int) -> None:
    """End this process as soon as its parent has ended, even if that was killed."""
    wait([sentinel])
    os._exit(1)
