"""Signals during training: acknowledged at once, obeyed at once if no progress is lost, and always the second time."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from modular_gpt.cli.app import CommandLine, answer
from modular_gpt.core.errors import UserError
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.runtime.signals import GracefulShutdown, raise_on_sigterm
from modular_gpt.training.recorder import NullRecorder
from modular_gpt.training.trainer import Trainer
from tests.training.small import config, trainer_of

BY_NUMBER = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}


def fit(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, at: int, number: int, times: int = 1) -> list[int]:
    """Train with signals during the forward pass number ``at``; returns the saved steps."""
    saved: list[int] = []
    calls = []
    forward: Callable[..., Any] = trainer.forward._run

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        for _ in range(times if len(calls) == at else 0):
            signal.raise_signal(number)
        return forward(*arguments)

    monkeypatch.setattr(trainer.forward, "_run", interrupted)
    trainer.fit(NullRecorder(), lambda required: saved.append(trainer.progress.step))
    return saved


@pytest.fixture
def trainer(folder: Path) -> Trainer:
    return trainer_of(config(folder, compile=False, sample_tokens=0))


@pytest.mark.parametrize("number", BY_NUMBER)
def test_while_the_first_step_compiles_a_signal_ends_at_once(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    trainer.forward.compiled = True  # set only the flag, since compilation takes too long for a test
    with pytest.raises(BY_NUMBER[signal.Signals(number)]):
        fit(trainer, monkeypatch, at=1, number=number)
    assert "stopping at once: no step is done yet" in capfd.readouterr().err
    assert signal.getsignal(number) is signal.default_int_handler or number == signal.SIGTERM


@pytest.mark.parametrize("compiled", [False, True])
def test_a_later_signal_finishes_and_saves_the_step(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], compiled: bool
) -> None:
    trainer.forward.compiled = compiled
    assert fit(trainer, monkeypatch, at=3, number=signal.SIGINT)[-1] == trainer.progress.step == 3
    assert "stopping: this step is finished and saved; Ctrl-C again ends at once" in capfd.readouterr().err


def test_a_second_signal_ends_at_once(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, monkeypatch, at=3, number=signal.SIGINT, times=2)


def test_one_of_several_processes_reports(capfd: pytest.CaptureFixture[str]) -> None:
    stop = GracefulShutdown(prints=False)
    with stop.catch():
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested() and not capfd.readouterr().err


@contextmanager
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in {"lo", "lo0"} & {name for _, name in socket.if_nameindex()}:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", name)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("when", ["before it is noticed", "on its way", "while it is reported", "afterwards"])
def test_a_launcher_does_not_hide_the_cause_of_an_end(
    when: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun sends SIGTERM when one process ends; the others still report the lost process."""
    processes, stop = ProcessGroup(1, 2), GracefulShutdown(prints=False)
    lost = ProcessGroup._lost_error

    def terminated(here: str) -> None:
        if here == when:
            signal.raise_signal(signal.SIGTERM)

    def reported(self: ProcessGroup, error: Exception) -> UserError:
        terminated("while it is reported")
        return lost(self, error)

    def run(line: CommandLine) -> int:
        with raise_on_sigterm():
            try:
                with processes.connected(torch.device("cpu"), 10.0):
                    try:
                        with stop.catch():
                            terminated("before it is noticed")
                            raise RuntimeError("[gloo.cc:1] Connection closed by peer")
                    finally:
                        terminated("on its way")
            finally:
                terminated("afterwards")

    monkeypatch.setattr(ProcessGroup, "_lost_error", reported)
    with group_of_one(monkeypatch):
        if when in ("before it is noticed", "on its way"):
            assert answer(run, []) == 2
        else:
            with pytest.raises(SystemExit, match="143"):
                answer(run, [])
    assert capsys.readouterr().err.count("error: process 1 of 2 lost another process (Connection closed by peer)") == 1


def test_a_signal_does_not_report_earlier_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def run(line: CommandLine) -> int:
        with raise_on_sigterm():
            try:
                raise UserError("no such file")
            except UserError:
                pass
            signal.raise_signal(signal.SIGTERM)
        return 0

    with pytest.raises(SystemExit, match="143"):
        answer(run, [])
    assert capsys.readouterr().err == ""
