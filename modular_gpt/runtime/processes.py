"""The processes that train together: their ranks, the messages between them, and what happens when one of them ends.

torchrun starts them and sets their ranks in the environment. Numbers travel by collectives of torch.distributed. Texts
travel through its store, and so does waiting for work that may take hours: nothing is pickled, and no timeout runs.
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
from modular_gpt.runtime.signals import deferred, interrupted

T = TypeVar("T")

ERROR, LOST = "error", "lost"  # keys in the store: the error of a process; whether a lost process has been reported
_runs = count()  # numbers the runs of this process: keys have a prefix for each run, since the store may outlive it
_GONE = ("connection", "gloo", "nccl", "timed out", "timeout")  # in PyTorch's messages when a process does not answer


class ProcessGroup:
    """The processes of a run, as one of them sees them.

    rank, world: rank of this process, and number of processes; local_rank, local_world: on this machine
    started: whether a launcher such as torchrun started this process
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1) -> None:
        self.rank, self.world, self.local_rank, self.local_world = rank, world, local_rank, local_world
        self.started = False
        self.directory: Path | None = None  # of the run, once there is one
        self._store: dist.Store | None = None
        self._channel = ""  # begins the keys of messages
        self._messages = count()  # numbers keys in the store; all processes send and receive in the same order

    @classmethod
    def launched(cls) -> "ProcessGroup":
        """The processes that the launcher has set in the environment, or one process alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(os.environ.get(name, "").isdigit() for name in names):
            return cls()
        group = cls(*(int(os.environ[name]) for name in names))
        group.started = True
        return group

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, which prints and writes."""
        return self.rank == 0

    @contextmanager
    def same_error_on_all_ranks(self) -> Iterator[None]:
        """Context manager for checks that fail in all processes alike: the first process alone reports the error."""
        try:
            yield
        except UserError as error:
            raise error if self.is_main else ReportedElsewhere(str(error)) from error

    @contextmanager
    def connected(self, device: torch.device, timeout: float | None) -> Iterator[None]:
        """Context manager: the processes are connected by torch.distributed.

        timeout: number of seconds that a collective may wait for another process; None: there is none to connect

        Raises:
            ReportedElsewhere: another process failed and has reported why.
            UserError: another process ended without reporting why.
        """
        if timeout is None:
            yield
            return
        owned = not dist.is_initialized()  # a second group in one process would wait for ever
        if owned:
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
            with deferred():
                told = self._to_raise(end)
                if told is None:
                    raise
                raise told from end
        if owned:
            self.all_reduce_max(0)  # wait for all
            gc.collect()  # objects that use the group must go before it does
            dist.destroy_process_group()

    def _to_raise(self, end: BaseException) -> UserError | None:
        """What this process raises for an error of all processes, or for the loss of one; None: ``end`` is neither."""
        for error in [end, *interrupted(end)] if isinstance(end, SystemExit) else [end]:
            if isinstance(error, UserError):
                return self._reported(error)
            if isinstance(error, (dist.DistError, RuntimeError)) and any(sign in str(error).lower() for sign in _GONE):
                return self._lost(error)
        return None

    def _reported(self, error: UserError) -> UserError:
        """The error for this process to raise, so that an error of all processes is printed once, by the first."""
        if isinstance(error, ReportedElsewhere):
            return error
        assert self._store is not None
        sentence = str(error)
        deadline = time.monotonic() + 1.0
        while not self.is_main and time.monotonic() < deadline:
            if self._store.check([ERROR]) and self._store.get(ERROR).decode() == sentence:
                return ReportedElsewhere(sentence)
            time.sleep(0.01)
        self._store.set(ERROR, sentence)
        return error if self.is_main else type(error)(f"process {self.rank}: {sentence}")

    def _lost(self, error: Exception) -> UserError:
        """The error for this process to raise if another does not answer; the first to notice reports it."""
        assert self._store is not None
        try:
            if self._store.check([ERROR]):
                return ReportedElsewhere(self._store.get(ERROR).decode())
            first = self._store.add(LOST, 1) == 1
        except (dist.DistError, RuntimeError):  # the store is gone with that process
            first = True
        reason = re.sub(r"^\[.*?\]\s*", "", str(error).strip()).partition(". ")[0].splitlines()[0]
        sentence = (
            f"process {self.rank} of {self.world} lost another one ({reason}), so training stops;"
            f" to go on, start it again with resume={self.directory or '<the directory of a run>'}"
        )
        return UserError(sentence) if first else ReportedElsewhere(sentence)

    def channel(self, name: str) -> "ProcessGroup":
        """The same processes with messages of their own, for a thread beside the main one."""
        other = copy(self)
        other._messages, other._channel = count(), f"{name}/"
        return other

    def run_on_main(self, work: Callable[[], str]) -> str:
        """Run ``work`` in the first process and return its result in all of them.

        The others wait without a timeout, so that ``work`` may take longer than the ``timeout`` of ``connected``.
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
        """Wait, without a timeout, until the first process gets here, whatever it does before."""
        self.run_on_main(str)

    def local_main_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` in every process, in one of each machine first, so that the others find its files."""
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
        """The texts of all processes, by rank."""
        if self.world == 1:
            return [text]
        key = f"{self._channel}gather/{next(self._messages)}"
        self._send(f"{key}/{self.rank}", text)
        return [self._receive(f"{key}/{rank}") for rank in range(self.world)]

    def _send(self, key: str, text: str) -> None:
        assert self._store is not None
        self._store.set(key, text)

    def _receive(self, key: str) -> str:
        """The text under a key of the store, once it is there. Polls, so that signals are handled in between."""
        assert self._store is not None
        while not self._store.check([key]):
            if self._store.check([ERROR]):
                raise ReportedElsewhere(self._store.get(ERROR).decode())
            time.sleep(0.005)
        text: str = self._store.get(key).decode()
        return text

    def all_reduce_max(self, number: int) -> int:
        """The largest number of all processes."""
        if self.world == 1:
            return number
        tensor = torch.tensor([number])
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def all_reduce_sum(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all processes of each named scalar."""
        if self.world == 1 or not values:
            return values
        stacked = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, stacked.unbind(), strict=True))
