"""Background checkpoints: equal to synchronous ones, atomic, one at a time, with reported errors."""

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.checkpoint import find_checkpoint, load_checkpoint, verify
from modular_gpt.core.errors import CheckpointError
from modular_gpt.training import RunConfig, checkpointing, load_config, train
from modular_gpt.training.checkpointing import Checkpoints, steps_in
from modular_gpt.training.trainer import Trainer
from tests import fresh
from tests.training.small import assert_same_ending, config, run_in_process

WAIT = 300.0  # timeout in seconds
SETTINGS: dict[str, Any] = {"max_steps": 12, "eval_interval": 4, "sample_tokens": 0, "ema_decay": 0.9, "keep": 5}


def in_background(folder: Path, **settings: Any) -> RunConfig:
    return config(folder, **{**SETTINGS, "async_save": True, **settings})


@pytest.fixture
def interfere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Function that installs a hook, called with the step in the background before each checkpoint is written."""

    def by(function: Callable[[int], None]) -> None:
        original = checkpointing.save_checkpoint

        def interfered(directory: Path, *arguments: Any, **keywords: Any) -> Path:
            assert threading.current_thread() is not threading.main_thread()
            function(int(directory.name.removeprefix("step_")))
            return original(directory, *arguments, **keywords)

        monkeypatch.setattr(checkpointing, "save_checkpoint", interfered)

    return by


def test_later_updates_do_not_change_the_saved_weights(
    folder: Path, interfere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every checkpoint except the last is written after the next update; all equal those of synchronous saves."""
    updated = {step: threading.Event() for step in range(13)}
    update = Trainer.update

    def noted(self: Trainer) -> None:
        update(self)
        updated[self.progress.step + 1].set()

    waits = train(config(folder, runs=str(folder / "waits"), **SETTINGS), quiet=True).directory
    monkeypatch.setattr(Trainer, "update", noted)
    interfere(lambda step: None if updated[min(step + 1, 12)].wait(WAIT) else pytest.fail("no update"))
    continues = train(in_background(folder), quiet=True).directory
    assert_same_ending(waits, continues)
    for step in (4, 8, 12):
        one, other = (directory / "checkpoints" / f"step_{step:08}" for directory in (waits, continues))
        for name in ("model", "optimizer", "trained", "trainer"):
            assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()


def test_a_save_waits_for_the_previous_one(
    folder: Path, interfere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    called, save = threading.Event(), Checkpoints.save

    def noted(self: Checkpoints, required: bool = True) -> None:
        step = self.trainer.progress.step
        events.append(f"called {step}")
        if step == 8:
            called.set()
        save(self, required)
        events.append(f"returned {step}")

    def slow(step: int) -> None:
        assert step != 4 or called.wait(WAIT)
        events.append(f"written {step}")

    monkeypatch.setattr(Checkpoints, "save", noted)
    interfere(slow)
    train(in_background(folder), quiet=True)
    assert events[:4] == ["called 4", "returned 4", "called 8", "written 4"]
    assert events.index("written 8") < events.index("written 12") < events.index("returned 12")


def test_a_failed_save_is_reported_and_the_next_is_tried(
    folder: Path, interfere: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    def full(step: int) -> None:
        if step == 4:
            raise CheckpointError("cannot save: the disk is full")

    interfere(full)
    with caplog.at_level(logging.WARNING):
        directory = train(in_background(folder), quiet=True).directory
    assert "step 4: cannot save: the disk is full; the training continues, and the next save is tried" in caplog.text
    assert steps_in(directory / "checkpoints") == [8, 12]


def test_the_last_save_has_to_succeed(folder: Path, interfere: Callable[..., None]) -> None:
    def full(step: int) -> None:
        if step == 12:
            raise CheckpointError("cannot save: the disk is full")

    interfere(full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        train(in_background(folder), quiet=True)
    (directory,) = (path for path in (folder / "runs").iterdir() if not path.is_symlink())
    assert find_checkpoint(directory, prefer="latest").name == "step_00000008"


def test_an_unexpected_error_ends_the_training_at_the_next_step(
    folder: Path, interfere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    raised, step_of, update = threading.Event(), [], Trainer.update

    def broken(step: int) -> None:
        raised.set()
        raise RuntimeError("a bug")

    def after_the_error(self: Trainer) -> None:
        step_of.append(self.progress.step)
        if self.progress.step == 4:
            assert raised.wait(WAIT)
        update(self)

    interfere(broken)
    monkeypatch.setattr(Trainer, "update", after_the_error)
    with pytest.raises(RuntimeError, match="a bug"):
        train(in_background(folder), quiet=True)
    assert step_of[-1] < 8  # the thread may end one step after it raised


def killed_while_saving(settings: dict[str, Any]) -> None:
    """Train, and kill this process in the background at the end of the second checkpoint, before its manifest."""
    from modular_gpt.checkpoint import native

    write, calls = native.write_manifest, 0

    def faulty(directory: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            assert threading.current_thread() is not threading.main_thread()
            os.kill(os.getpid(), signal.SIGKILL)
        write(directory)

    native.write_manifest = faulty  # type: ignore[assignment]
    run_in_process(settings)


def test_killed_in_the_background(folder: Path) -> None:
    """The previous checkpoint is intact, and the resumed training ends equal."""
    undisturbed = train(config(folder, runs=str(folder / "whole"), **SETTINGS), quiet=True).directory
    process = fresh.processes().Process(target=killed_while_saving, args=(in_background(folder).to_dict(),))
    process.start()
    process.join(WAIT)
    assert process.exitcode == -signal.SIGKILL
    (directory,) = (path for path in (folder / "runs").iterdir() if not path.is_symlink())
    checkpoint = find_checkpoint(directory, prefer="latest")
    assert checkpoint.name == "step_00000004"
    verify(checkpoint)
    resumed = train(load_config(directory), quiet=True).directory
    assert resumed == directory
    assert_same_ending(undisturbed, directory)
    load_checkpoint(directory)
