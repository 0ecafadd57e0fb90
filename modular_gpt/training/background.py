"""Work of a save that may go on in a thread while training continues, one save at a time."""

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
    """How a save ended: what it was of, and the problem of the first process; empty for none."""

    subject: T
    problem: str


class BackgroundSaves(Generic[T]):
    """Runs the work of one save after the other: in a thread, or at once where ``enabled`` is false.

    Every process of a run has one, and all call the same methods in the same order.
    """

    def __init__(self, processes: ProcessGroup, enabled: bool) -> None:
        self.processes, self.enabled = processes, enabled
        self._pending: tuple[T, Future[None]] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")

    def staged(self, tensors: Tensors) -> Tensors:
        """Copies in the CPU's memory, which later updates do not change; the tensors themselves if not ``enabled``."""
        if not self.enabled:
            return tensors
        copies: Tensors = BlockingAsyncStager().stage(dict(tensors))
        return copies

    def start(self, subject: T, work: Work) -> None:
        """Begin a save. The one before has to be finished."""
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
        """How the save ended, once all processes have done their work; None before. Collective."""
        if self._pending is None or self.processes.all_reduce_max(int(not self._pending[1].done())):
            return None
        return self.finish()

    def finish(self) -> Saved[T] | None:
        """Wait for the work to end; None if there was none. Collective; waits without a timeout.

        Errors other than a CheckpointError are raised.
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
        """Let the work of this process end, after an error elsewhere, and forget how it ended."""
        if self._pending is not None:
            with suppress(Exception):
                self._pending[1].result()
        self._executor.shutdown()
