"""A run that is stopped at any step and resumed ends bitwise equal to an uninterrupted one."""

import shutil
import signal
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.checkpoint import FOLDER, STEP
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.runtime.signals import GracefulShutdown
from modular_gpt.training import RunConfig, load_config
from modular_gpt.training.checkpointing import Checkpoints
from tests.training.small import (
    TRAINER,
    assert_ending,
    assert_same_ending,
    config,
    ending,
    finished_run,
    run,
    stop_after,
    trainer_of,
    write_text,
)

pytestmark = pytest.mark.usefixtures("fast")

STEPS = 9
# The stops after steps 1 to 8 are before, at and after each evaluation and each entry of the metrics.
SHORT = {"max_steps": STEPS, "eval_interval": 3, "log_interval": 2, "sample_tokens": 1}
GRID = [  # models of one layer; the others have two
    ({"dropout": dropout, "n_layers": 1}, {"gradient_accumulation": accumulation, "optim": optim})
    for optim, accumulation, dropout in product(("adamw", "muon"), (1, 4), (0.0, 0.1))
]
MORE = [
    ({}, {"order": "epoch", "batch_size": 32, "save_interval": 4}),
    ({"ffn": {"name": "moe", "balance": "bias", "n_experts": 4}}, {"schedule": "wsd"}),
    ({}, {"optim": "adafactor", "precision": "bf16"}),
    ({"dropout": 0.1}, {"label_smoothing": 0.1, "z_loss": 0.01, "activation_checkpointing": 2}),
    ({}, {"ema_decay": 0.9, "save_interval": 4}),
]


def stop_and_go(folder: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int], **settings: Any) -> Path:
    """Train, stop after each of ``stops`` and resume; returns the last result."""
    resume = None
    for step in [*stops, None]:
        with monkeypatch.context() as patch:
            if step is not None:
                stop_after(patch, step)
            result = run(config(folder, resume=resume, **settings))
        resume = str(result.directory)
        assert (result.signal is None) == (step is None)
    return result.directory


def stopped_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: RunConfig) -> tuple[Path, dict[int, Path]]:
    """A run, and copies of its directory as if it had been stopped, by step.

    One training makes all copies: at each check for a stop it saves, and its directory is copied.
    """
    made: list[Checkpoints] = []
    copies: dict[int, Path] = {}
    begin, requested = Checkpoints.__init__, GracefulShutdown.requested

    def noted(self: Checkpoints, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    def copied(self: GracefulShutdown) -> bool:
        step = made[-1].trainer.progress.step
        if 0 < step < STEPS and step not in copies:
            made[-1].save()
            copies[step] = folder / "stopped" / f"{step}-gpt"
            shutil.copytree(made[-1].files.directory, copies[step], symlinks=True)
        return requested(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "__init__", noted)
        patch.setattr(GracefulShutdown, "requested", copied)
        return run(settings).directory, copies


@pytest.mark.parametrize(("model", "settings"), GRID + MORE, ids=str)
def test_stopped_after_any_step(
    model: dict[str, Any], settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tests stop runs with signals; here all stops of a run take one training."""
    settings = {**SHORT, **settings}
    whole = ending(run(config(folder, model, **settings)).directory)
    another, copies = stopped_runs(folder, monkeypatch, config(folder, model, **settings))
    assert_ending(another, whole)
    assert list(copies) == list(range(1, STEPS))
    for directory in copies.values():
        assert_ending(run(config(folder, model, resume=str(directory), **settings)).directory, whole)


@pytest.mark.parametrize(
    ("stops", "order"),
    [
        *[([3, 5, 7], "random"), ([1, 2, 3], "random")],
        *[([1, 2, 3], "epoch"), ([2, 3, 4], "epoch"), ([5, 6, 7], "epoch")],  # within an epoch
        *[([4, 8, 11], "epoch"), ([5, 6, 10], "epoch"), ([2, 7, 11], "epoch")],  # across its end
    ],
    ids=str,
)
def test_stopped_again_and_again(stops: list[int], order: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of the short text has between 4 and 5 steps, so stops lie within one and on both sides of its end."""
    write_text(folder / "text.txt", words=320)
    settings = {"order": order, "batch_size": 32, "model": {"n_layers": 1}}
    whole = run(config(folder, **settings)).directory
    assert_same_ending(whole, stop_and_go(folder, monkeypatch, stops, **settings))


def test_each_sample_is_read_once_per_epoch_across_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(folder / "text.txt", words=320)
    settings = config(folder, order="epoch", batch_size=32)
    windows = trainer_of(settings).batches.windows
    seen: list[int] = []
    batch = type(trainer_of(settings).batches).batch

    def noted(self: Any, step: int, *args: Any) -> Any:
        if self.mode == "epoch":
            seen.extend((self.starts(step) // self.block).tolist())
        return batch(self, step, *args)

    monkeypatch.setattr("modular_gpt.data.BatchSource.batch", noted)
    stop_and_go(folder, monkeypatch, [2, 3, 7], order="epoch", batch_size=32)
    assert len(seen) == TRAINER["max_steps"] * 32
    for epoch in range(len(seen) // windows):
        assert sorted(seen[epoch * windows : (epoch + 1) * windows]) == list(range(windows))


@pytest.mark.parametrize("interval", [4, 12])
def test_a_stop_while_evaluating_changes_nothing(interval: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first evaluation; with an interval of 12 it is the last one, after all steps."""
    whole = run(config(folder, eval_interval=interval)).directory
    with monkeypatch.context() as patch:
        from modular_gpt.training.validation import Validation

        batches = Validation.batches

        def stopping(self: Validation, number: int) -> Any:
            self.stop.signal = 2
            return batches(self, number)

        patch.setattr(Validation, "batches", stopping)
        stopped = run(config(folder, eval_interval=interval))
        assert stopped.signal == 2
        assert ending(stopped.directory)[1]["evaluated"] == 0
    resumed = run(config(folder, resume=str(stopped.directory), eval_interval=interval))
    assert_same_ending(whole, resumed.directory)


def test_a_damaged_latest_checkpoint_falls_back_to_the_previous_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(config(folder)).directory
    stopped = stop_and_go(folder, monkeypatch, [])
    latest = stopped / FOLDER / f"{STEP}00000012"
    (latest / "model.safetensors").write_bytes(b"")
    resumed = run(config(folder, resume=str(stopped)))
    assert_same_ending(whole, resumed.directory)
    assert "model.safetensors" in caplog.text
    assert "step_00000008' instead" in caplog.text


def test_settings_are_read_from_a_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(
        folder, {"attention": "gqa"}, optim={"name": "adamw", "beta2": 0.9, "learning_rate": 3e-3}, seed=3
    )
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        directory = run(settings).directory
    again = load_config(directory)
    assert again.resume == str(directory)
    assert {**vars(again), "resume": None} == vars(settings)
    assert run(again).outcome is not None


def resumed(folder: Path, directory: Path, model: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    return config(folder, model, **{"max_steps": 20, **settings}, resume=str(directory))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": {"d_model": 32}}, CheckpointError, "d_model"),
        ({"seed": 1}, CheckpointError, "seed=0"),
        ({"batch_size": 8}, CheckpointError, "trainer.batch_size=4"),
        ({"order": "epoch"}, CheckpointError, "trainer.order=random"),
        ({"optim": "adamw"}, CheckpointError, "optim=muon"),
        ({"max_steps": 12}, ConfigError, "done 12 steps already"),
        ({"tokenizer": "char", "model": {"vocab_size": 256}}, DataError, "tokenizer"),
    ],
    ids=str,
)
def test_settings_that_cannot_change_at_a_resume(
    change: dict[str, Any], error: type[Exception], words: str, folder: Path
) -> None:
    directory = finished_run(config(folder))
    before = ending(directory)[1]
    with pytest.raises(error, match=words):
        run(resumed(folder, directory, **change))
    assert ending(directory)[1] == before


def test_a_changed_text_is_refused(folder: Path) -> None:
    directory = run(config(folder)).directory
    write_text(folder / "text.txt", words=1201)
    with pytest.raises(DataError, match="corpus is not the one of the checkpoint"):
        run(resumed(folder, directory))


def test_more_steps_continue_at_the_end_of_the_run(folder: Path) -> None:
    directory = run(config(folder, schedule="constant")).directory
    longer = run(resumed(folder, directory, schedule="constant")).directory
    assert longer == directory.absolute()
    assert_same_ending(run(config(folder, schedule="constant", max_steps=20)).directory, longer)


def test_a_model_without_a_training_cannot_be_resumed(folder: Path) -> None:
    from modular_gpt.checkpoint import save_checkpoint

    trainer = trainer_of(config(folder))
    save_checkpoint(folder / "model", trainer.model, trainer.tokenizer)
    with pytest.raises(CheckpointError, match="holds a model but no training"):
        run(config(folder, resume=str(folder / "model")))


def test_stopped_before_the_first_update(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer has no state yet, and the checkpoint is complete without it."""
    whole = run(config(folder)).directory
    requested = GracefulShutdown.requested

    def at_once(self: GracefulShutdown) -> bool:
        self.signal = signal.SIGTERM
        return requested(self)

    with monkeypatch.context() as patch:
        patch.setattr(GracefulShutdown, "requested", at_once)
        stopped = run(config(folder, runs=str(folder / "others")))
    assert stopped.signal == signal.SIGTERM
    assert_same_ending(whole, run(config(folder, resume=str(stopped.directory))).directory)
