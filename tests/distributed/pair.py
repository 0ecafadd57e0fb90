"""Two processes, or more, that stay, connected by gloo, and do one case after another; and what they do in a case."""

import os
import socket
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.fresh import processes
from tests.training.small import train_quickly

WAIT = 300.0  # seconds that a case may take on a machine that is busy


class Pair:
    """``pair(function, *arguments)`` calls a function of a module in all, and returns what each returns, by rank."""

    def __init__(self, cache: Path, size: int = 2) -> None:
        """size: number of processes"""
        context = processes()
        pipes = [context.Pipe() for _ in range(size)]
        meeting = f"file://{tempfile.mkdtemp(dir=cache.parent)}/meeting"  # a port could be taken by another worker
        environment = {**as_launched(size, 0), "MODULAR_GPT_CACHE": str(cache)}
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=stay, args=(rank, environment, meeting, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(WAIT):
                self.end()
                raise TimeoutError(f"process {rank} did not answer within {WAIT} s")
            answers.append(pipe.recv())
        failures = [f"process {rank}:\n{said}" for rank, (fine, said) in enumerate(answers) if not fine]
        assert not failures, "\n".join(failures)
        return [said for _, said in answers]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def as_launched(world: int, port: int) -> dict[str, str]:
    """What torchrun puts into the environment of each process on one machine, but for its rank."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), **address}


def stay(rank: int, environment: dict[str, str], meeting: str, pipe: Any) -> None:
    """The life of one process of the pair."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    train_quickly()
    for name in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:  # whatever this machine's name means
        os.environ["GLOO_SOCKET_IFNAME"] = name
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=int(environment["WORLD_SIZE"]))
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
