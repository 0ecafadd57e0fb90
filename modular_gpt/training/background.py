"""Checkpoint saves that a background thread finishes while training continues, one at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

from torch.distributed.checkpoint.staging import BlockingAsyncStager

from modular_gpt.core.errors import CheckpointError
from modular_gpt.distributed import Tensors
from modular_gpt.runtime.processes import ProcessGroup

T = TypeVar("T")
Work = Callable[[], None]


class Saved(NamedTuple, Generic[T]):
    """The outcome of a save.

    subject: identifies the save, as given to ``start``
    problem: the error message of the first process; empty if the save succeeded
    """

    subject: T
    problem: str


class BackgroundSaves(Generic[T]):
    """Runs one save after the other: in a thread, or in the call of ``start`` where ``enabled`` is false.

    Every process of a run has an instance, and all processes call the same methods in the same order.
    """

    def __init__(self, processes: ProcessGroup, enabled: bool) -> None:
        self.processes, self.enabled = processes, enabled
        self._pending: tuple[T, Future[None]] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def staged(self, tensors: Tensors) -> Tensors:
        """Copies of tensors in CPU memory, which later updates do not change; if not ``enabled``, the tensors."""
        if not self.enabled:
            return tensors
        copies: Tensors = BlockingAsyncStager().stage(dict(tensors))
        return copies

    def start(self, subject: T, work: Work) -> None:
        """Begin a save, which calls ``work``. The save before must have been finished by ``poll`` or ``finish``."""
        assert self._pending is None
        if self.enabled:
            self._pending = subject, self._executor.submit(work)
            return
        future: Future[None] = Future()
        try:
            work()
            future.set_result(None)
        except CheckpointError as error:
            future.set_exception(error)
        self._pending = subject, future

    def poll(self) -> Saved[T] | None:
        """The outcome of the pending save if all processes have finished it, else None. Collective."""
        if self._pending is None or self.processes.all_reduce_max(int(not self._pending[1].done())):
            return None
        return self.finish()

    def finish(self) -> Saved[T] | None:
        """Wait for the pending save, without a timeout, and return its outcome; None if no save is pending. Collective.

        Raises:
            Exception: any error of the save that is not a CheckpointError; that one is returned as the problem.
        """
        if self._pending is None:
            return None
        (subject, future), self._pending = self._pending, None
        problem = ""
        try:
            future.result()
        except CheckpointError as error:
            problem = str(error)
        return Saved(subject, self.processes.run_on_main(lambda: problem))

    def close(self) -> None:
        """After an error elsewhere: wait for the pending save of this process and discard its outcome."""
        if self._pending is not None:
            with suppress(Exception):
                self._pending[1].result()
        self._executor.shutdown()
