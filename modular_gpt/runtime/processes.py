"""The processes of a training: ranks, collective operations, messages, and the handling of a lost process.

torchrun starts the processes and sets their ranks in the environment. Numbers are sent by collectives of
torch.distributed. Texts are sent through its store, without pickling, which is also used to wait without a timeout for
work that may take hours.
"""

import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import copy
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from modular_gpt.core.collectives import data_parallel_region
from modular_gpt.core.errors import ReportedElsewhere, UserError
from modular_gpt.runtime.signals import deferred_signals, pending_errors

T = TypeVar("T")

ERROR, LOST = "error", "lost"  # keys in the store: the error of a process; number of processes that noticed a loss
_runs = count()  # numbers the runs of this process: each has a prefix for its keys, since the store may outlive it
_LOST_PHRASES = ("connection", "gloo", "nccl", "timed out", "timeout")  # in PyTorch's messages about a lost process


class ProcessGroup:
    """The processes of a run, seen from one of them.

    rank, world: rank of this process, and number of processes; local_rank, local_world: the same on this machine
    started: whether a launcher such as torchrun started this process
    directory: directory of the run, for messages; None before it exists
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1) -> None:
        self.rank, self.world, self.local_rank, self.local_world = rank, world, local_rank, local_world
        self.started = False
        self.directory: Path | None = None
        self._store: dist.Store | None = None
        self._channel = ""  # prefix of the keys of messages
        self._messages = count()  # numbers the keys of messages, whose order is the same in all processes

    @classmethod
    def launched(cls) -> "ProcessGroup":
        """The processes that the launcher's environment variables define; without them, a single process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(os.environ.get(name, "").isdigit() for name in names):
            return cls()
        group = cls(*(int(os.environ[name]) for name in names))
        group.started = True
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which prints and writes files."""
        return self.rank == 0

    @contextmanager
    def same_error_on_all_ranks(self) -> Iterator[None]:
        """Context manager for checks that fail equally in all processes: only the first process reports the error."""
        try:
            yield
        except UserError as error:
            raise error if self.is_main else ReportedElsewhere(str(error)) from error

    @contextmanager
    def connected(self, device: torch.device, timeout: float | None) -> Iterator[None]:
        """Context manager: the processes are connected by torch.distributed.

        timeout: of collective operations in seconds; None: there is one process, and nothing is connected

        Raises:
            ReportedElsewhere: another process has reported an error.
            UserError: another process ended without reporting an error.
        """
        if timeout is None:
            yield
            return
        initialised_here = not dist.is_initialized()  # a second default group would wait for ever
        if initialised_here:
            on_gpu = device.type == "cuda"
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
                timeout=timedelta(seconds=timeout),
                device_id=device if on_gpu else None,
            )
        self._store = dist.PrefixStore(f"modular_gpt/{next(_runs)}", dist.distributed_c10d._get_default_store())
        try:
            with data_parallel_region() if self.world > 1 else nullcontext():
                yield
        except BaseException as end:
            with deferred_signals():
                reported = self._reported_error(end)
                if reported is None:
                    raise
                raise reported from end
        if initialised_here:
            self.all_reduce_max(0)  # a barrier
            gc.collect()  # deletes objects that use the group before it is destroyed
            dist.destroy_process_group()

    def _reported_error(self, end: BaseException) -> UserError | None:
        """The error to raise instead of ``end``; None if ``end`` is neither a UserError nor due to a lost process."""
        for error in [end, *pending_errors(end)] if isinstance(end, SystemExit) else [end]:
            if isinstance(error, UserError):
                return self._user_error(error)
            is_of_torch = isinstance(error, (dist.DistError, RuntimeError))
            if is_of_torch and any(phrase in str(error).lower() for phrase in _LOST_PHRASES):
                return self._lost_error(error)
        return None

    def _user_error(self, error: UserError) -> UserError:
        """The error to raise for ``error``: an error of all processes is reported once, by the first process."""
        if isinstance(error, ReportedElsewhere):
            return error
        assert self._store is not None
        message = str(error)
        deadline = time.monotonic() + 1.0
        while not self.is_main and time.monotonic() < deadline:
            if self._store.check([ERROR]) and self._store.get(ERROR).decode() == message:
                return ReportedElsewhere(message)
            time.sleep(0.01)
        self._store.set(ERROR, message)
        return error if self.is_main else type(error)(f"process {self.rank}: {message}")

    def _lost_error(self, error: BaseException) -> UserError:
        """The error to raise if another process does not answer; the first process to notice it reports it."""
        assert self._store is not None
        try:
            if self._store.check([ERROR]):
                return ReportedElsewhere(self._store.get(ERROR).decode())
            first = self._store.add(LOST, 1) == 1
        except (dist.DistError, RuntimeError):  # the lost process held the store
            first = True
        reason = re.sub(r"^\[.*?\]\s*", "", str(error).strip()).partition(". ")[0].splitlines()[0]
        message = (
            f"process {self.rank} of {self.world} lost another process ({reason}), so training stops;"
            f" to resume it, start it again with resume={self.directory or '<the directory of a run>'}"
        )
        return UserError(message) if first else ReportedElsewhere(message)

    def channel(self, name: str) -> "ProcessGroup":
        """The same processes with a separate sequence of messages, for a thread beside the main one."""
        other = copy(self)
        other._messages, other._channel = count(), f"{name}/"
        return other

    def run_on_main(self, work: Callable[[], str]) -> str:
        """Run ``work`` in the first process and return its result in all processes. Collective.

        The others wait without a timeout, so ``work`` may take longer than the ``timeout`` of ``connected``.

        Raises:
            ReportedElsewhere: (in the others) a process has reported an error.
        """
        if self.world == 1:
            return work()
        key = f"{self._channel}main/{next(self._messages)}"
        if self.is_main:
            text = work()
            self._send(key, text)
            return text
        return self._receive(key)

    def wait_for_main(self) -> None:
        """Wait, without a timeout, until the first process has reached this call. Collective."""
        self.run_on_main(str)

    def local_main_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` in every process; on each machine in one process first, whose files the others can use."""
        if self.world == 1:
            return work()
        key = f"{self._channel}local/{next(self._messages)}/{self.rank - self.local_rank}"
        if self.local_rank:
            self._receive(key)
        result = work()
        if not self.local_rank:
            self._send(key, "done")
        return result

    def all_gather(self, text: str) -> list[str]:
        """Gather the texts of all processes, in the order of ranks. Collective."""
        if self.world == 1:
            return [text]
        key = f"{self._channel}gather/{next(self._messages)}"
        self._send(f"{key}/{self.rank}", text)
        return [self._receive(f"{key}/{rank}") for rank in range(self.world)]

    def _send(self, key: str, text: str) -> None:
        assert self._store is not None
        self._store.set(key, text)

    def _receive(self, key: str) -> str:
        """Wait for the text under a key of the store. Polls the store, so that signals are handled in between."""
        assert self._store is not None
        while not self._store.check([key]):
            if self._store.check([ERROR]):
                raise ReportedElsewhere(self._store.get(ERROR).decode())
            time.sleep(0.005)
        text: str = self._store.get(key).decode()
        return text

    def all_reduce_max(self, number: int) -> int:
        """The maximum of ``number`` over all processes. Collective."""
        if self.world == 1:
            return number
        tensor = torch.tensor([number])
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def all_reduce_sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum named scalars over all processes, in float64. Collective; returns ``values`` if there is one process."""
        if self.world == 1 or not values:
            return values
        stacked = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))
