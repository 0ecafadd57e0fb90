"""Two or more persistent processes, connected by gloo, that run one test case after another."""

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

WAIT = 300.0  # timeout of a case in seconds, for a loaded machine


class Pair:
    """``pair(function, *arguments)`` calls a module-level function in all processes; returns the results by rank."""

    def __init__(self, cache: Path, size: int = 2) -> None:
        """size: number of processes"""
        context = processes()
        pipes = [context.Pipe() for _ in range(size)]
        meeting = f"file://{tempfile.mkdtemp(dir=cache.parent)}/meeting"  # a port could be in use by another worker
        environment = {**as_launched(size, 0), "MODULAR_GPT_CACHE": str(cache)}
        self.pipes = [parent for parent, _ in pipes]
        self.processes = [
            context.Process(target=stay, args=(rank, environment, meeting, child), daemon=True)
            for rank, (_, child) in enumerate(pipes)
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
        failures = [f"process {rank}:\n{result}" for rank, (fine, result) in enumerate(answers) if not fine]
        assert not failures, "\n".join(failures)
        return [result for _, result in answers]

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def as_launched(world: int, port: int) -> dict[str, str]:
    """The environment that torchrun sets for the processes of one machine, except their rank."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), **address}


def stay(rank: int, environment: dict[str, str], meeting: str, pipe: Any) -> None:
    """Main loop of one process of the pair."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    train_quickly()
    for name in {"lo", "lo0"} & {
        name for _, name in socket.if_nameindex()
    }:  # do not resolve the host name of the machine
        os.environ["GLOO_SOCKET_IFNAME"] = name
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=int(environment["WORLD_SIZE"]))
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((True, function(*arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
