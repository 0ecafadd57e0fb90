"""The processes that train together: who they are, what they tell each other, and what happens when one of them ends.

torchrun starts them and says in the environment which one each is. Numbers travel by torch.distributed; words, and
waiting for work that may take hours, go through its store, so that nothing is pickled and no timeout runs meanwhile.
"""

import gc
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from modular_gpt.core.collectives import data_parallel_region
from modular_gpt.core.errors import ReportedElsewhere, UserError

T = TypeVar("T")

ERROR, LOST = "error", "lost"  # words in the store: what a process failed with; that somebody said a process is gone
_runs = count()  # of this process: each has words of its own in the store, which may outlive a run
_GONE = ("connection", "gloo", "nccl", "timed out", "timeout")  # in what PyTorch says when a process does not answer


class ProcessGroup:
    """This process among those of a run.

    rank, world: its number and how many there are; local_rank, local_world: on its machine
    started: whether a launcher such as torchrun started it
    """

    def __init__(self, rank: int = 0, world: int = 1, local_rank: int = 0, local_world: int = 1) -> None:
        self.rank, self.world, self.local_rank, self.local_world = rank, world, local_rank, local_world
        self.started = False
        self.directory: Path | None = None  # of the run, once there is one
        self._store: dist.Store | None = None
        self._words = count()

    @classmethod
    def launched(cls) -> "ProcessGroup":
        """As the launcher says, or one alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(os.environ.get(name, "").isdigit() for name in names):
            return cls()
        one = cls(*(int(os.environ[name]) for name in names))
        one.started = True
        return one

    @property
    def is_main(self) -> bool:
        """Whether it is the first, which prints and writes."""
        return self.rank == 0

    @contextmanager
    def same_error_on_all_ranks(self) -> Iterator[None]:
        """Whatever mistake is found while the block runs, all processes find it, and the first one tells it."""
        try:
            yield
        except UserError as error:
            raise error if self.is_main else ReportedElsewhere(str(error)) from error

    @contextmanager
    def connected(self, device: torch.device, timeout: float | None) -> Iterator[None]:
        """Let the processes talk while the block runs; ``timeout``: seconds that an answer may take (None: they
        have nothing to say).

        Raises:
            Told: another process failed and has said why.
            UserError: another process ended without a word.
        """
        if timeout is None:
            yield
            return
        ours = not dist.is_initialized()  # a second group in one process would wait for ever
        if ours:
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
        except UserError as error:
            raise self._told(error) from error
        except (dist.DistError, RuntimeError) as error:
            if not any(word in str(error).lower() for word in _GONE):
                raise
            raise self._lost(error) from error
        if ours:
            self.highest(0)  # all are done
            gc.collect()  # what still uses the group must go before it does
            dist.destroy_process_group()

    def _told(self, error: UserError) -> UserError:
        """The same error, as one that is printed once: a mistake that all make is told by the first."""
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
        """What to say when another process does not answer: the first one to notice says it."""
        assert self._store is not None
        try:
            if self._store.check([ERROR]):
                return ReportedElsewhere(self._store.get(ERROR).decode())
            first = self._store.add(LOST, 1) == 1
        except (dist.DistError, RuntimeError):  # the store has gone with that process
            first = True
        reason = re.sub(r"^\[.*?\]\s*", "", str(error).strip()).partition(". ")[0].splitlines()[0]
        said = (
            f"process {self.rank} of {self.world} lost another one ({reason}), so training stops;"
            f" to go on, start it again with resume={self.directory or '<the directory of a run>'}"
        )
        return UserError(said) if first else ReportedElsewhere(said)

    def lead(self, work: Callable[[], str]) -> str:
        """What ``work`` returns in the first process, in all of them; the others wait, however long it takes."""
        if self.world == 1:
            return work()
        key = f"lead/{next(self._words)}"
        if self.is_main:
            self._say(key, text := work())
            return text
        return self._heard(key)

    def local_main_first(self, work: Callable[[], T]) -> T:
        """Run ``work`` everywhere, first in one process of each machine: what it makes on the disk is there then."""
        if self.world == 1:
            return work()
        key = f"turn/{next(self._words)}/{self.rank - self.local_rank}"
        if self.local_rank:
            self._heard(key)
        result = work()
        if not self.local_rank:
            self._say(key, "done")
        return result

    def gather(self, text: str) -> list[str]:
        """A text of every process, by rank."""
        if self.world == 1:
            return [text]
        key = f"gather/{next(self._words)}"
        self._say(f"{key}/{self.rank}", text)
        return [self._heard(f"{key}/{rank}") for rank in range(self.world)]

    def _say(self, key: str, text: str) -> None:
        assert self._store is not None
        self._store.set(key, text)

    def _heard(self, key: str) -> str:
        """A word in the store, once it is there; by short looks, between which signals are obeyed."""
        assert self._store is not None
        while not self._store.check([key]):
            if self._store.check([ERROR]):
                raise ReportedElsewhere(self._store.get(ERROR).decode())
            time.sleep(0.005)
        return self._store.get(key).decode()

    def highest(self, number: int) -> int:
        """The highest of every process's number, in all of them."""
        if self.world == 1:
            return number
        tensor = torch.tensor([number])
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def add(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sum over all processes of each named scalar."""
        if self.world == 1 or not values:
            return values
        together = torch.stack([value.detach().double() for value in values.values()])
        dist.all_reduce(together)
        return dict(zip(values, together.unbind(), strict=True))
