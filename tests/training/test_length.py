"""Epochs, tokens and time as the length of a training."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from modular_gpt import compose
from modular_gpt.checkpoint import find_checkpoint, read_json
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import seconds_of
from modular_gpt.training import RunConfig, TrainerConfig
from modular_gpt.training.length import with_steps
from modular_gpt.training.run import load_config
from modular_gpt.training.trainer import Trainer
from tests.training.small import MODEL, assert_same_ending, config, run, stop_after, trainer_of

SHORT: dict[str, Any] = {"max_steps": TrainerConfig.max_steps}


def lasting(folder: Path, **settings: Any) -> RunConfig:
    """Config of a run whose length is not given in steps."""
    return config(folder, **{**SHORT, **settings})


def test_an_epoch_visits_each_window_once(folder: Path) -> None:
    """The number of steps is the smallest one that covers the windows of all epochs."""
    settings = lasting(folder, epochs=1.5, batch_size=64, order="epoch")
    trainer = trainer_of(settings)
    windows = (trainer.data.epoch_tokens - 1) // MODEL["context_length"]  # type: ignore[operator]
    assert (trainer.config.max_steps - 1) * 64 < 1.5 * windows <= trainer.config.max_steps * 64
    assert trainer.schedule.max_steps == trainer.config.max_steps and trainer.config.epochs is None


def test_tokens_do_not_exceed_the_limit(folder: Path) -> None:
    trainer = trainer_of(lasting(folder, max_tokens=64 * 7 + 63))
    assert trainer.config.max_steps == 7
    with pytest.raises(ConfigError, match=r"trainer.max_tokens=63 are fewer than the 64 of one step"):
        trainer_of(lasting(folder, max_tokens=63))


def test_the_run_keeps_its_number_of_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a number of tokens equals that of the number of steps, and resumes as such."""
    plain = run(config(folder, max_steps=12)).directory
    whole = run(lasting(folder, max_tokens=64 * 12)).directory
    assert_same_ending(plain, whole)
    recorded = yaml.safe_load((whole / "config.yaml").read_text())["trainer"]
    assert recorded["max_steps"] == 12 and recorded["max_tokens"] is None
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        stopped = run(lasting(folder, max_tokens=64 * 12)).directory
    settings = load_config(stopped)
    assert settings.trainer.max_steps == 12
    assert_same_ending(whole, run(settings).directory)
    longer = compose(f"resume={stopped}", "trainer.epochs=2")
    assert (longer.trainer.max_steps, longer.trainer.epochs) == (TrainerConfig.max_steps, 2.0)


def test_time_ends_a_training_with_an_evaluation_and_a_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is faked: time ends after step 6, which has no other evaluation or save."""
    update = Trainer.update

    def slow(self: Trainer) -> None:
        update(self)
        self.since -= 1000 if self.progress.step + 1 == 6 else 0

    monkeypatch.setattr(Trainer, "update", slow)
    result = run(config(folder, max_time="10m"))
    assert result.outcome is not None and result.outcome.steps == 6 and result.signal is None
    assert read_json(find_checkpoint(result.directory, prefer="latest") / "meta.json")["progress"]["evaluated"] == 6
    with pytest.raises(ConfigError, match=r"has trained for \d+ s already: to resume it, .* \(it is 10m\)"):
        run(load_config(result.directory))
    monkeypatch.setattr(Trainer, "update", update)
    resumed = run(config(folder, resume=str(result.directory), max_time="2h"))
    assert resumed.outcome is not None and resumed.outcome.steps == 12


def test_at_least_one_step_is_done(folder: Path) -> None:
    assert run(config(folder, max_time=1e-9)).outcome.steps == 1  # type: ignore[union-attr]


def test_new_data_has_no_epochs(folder: Path) -> None:
    with pytest.raises(ConfigError, match="this data is new at every step and has no epochs"):
        trainer_of(lasting(folder, epochs=2, data={"name": "synthetic", "task": "lag", "lag": 2}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2, "max_tokens": 100}, "trainer.epochs=2.0 and trainer.max_tokens=100 both set the length"),
        ({"epochs": 2, "max_steps": 100}, "trainer.max_steps=100 and trainer.epochs=2.0 both set the length"),
        ({"epochs": 0}, "trainer.epochs must be above 0"),
        ({"max_tokens": -5}, "trainer.max_tokens must be above 0"),
        ({"max_time": 0}, "trainer.max_time must be a time above 0, seconds or a text such as 90m or 1h30m, got 0"),
        ({"max_time": "soon"}, "trainer.max_time must be a time above 0"),
        ({"max_time": "1m1h"}, "trainer.max_time must be a time above 0"),
        ({"max_time": ""}, "trainer.max_time must be a time above 0"),
    ],
)
def test_invalid_lengths_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainerConfig(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", 5400.0), ("1h30m", 5400.0), (5400, 5400.0), ("5400", 5400.0), ("1.5h", 5400.0), ("1d1s", 86401.0)],
)
def test_times(text: float | str, expected: float) -> None:
    assert seconds_of(text, "x") == expected


@pytest.mark.parametrize("name", ["epochs", "num_train_epochs", "max_epochs", "trainer.epochs", "trainer.num_epochs"])
def test_foreign_names_of_epochs(name: str) -> None:
    assert compose(f"{name}=3").trainer.epochs == 3.0


def test_a_given_length_replaces_another() -> None:
    assert compose("experiment=shakespeare_char").trainer.max_steps == 2000
    typed = compose("experiment=shakespeare_char", "trainer.epochs=2").trainer
    assert (typed.max_steps, typed.epochs) == (TrainerConfig.max_steps, 2.0)
    with pytest.raises(ConfigError, match="both set the length of the training: give one"):
        compose("trainer.epochs=2", "trainer.max_steps=1600")


def test_the_schedule_is_checked_when_the_steps_are_known(folder: Path) -> None:
    settings = lasting(folder, epochs=100, schedule={"name": "cosine", "warmup": 2000})
    trainer_of(settings)
    with pytest.raises(ConfigError, match=r"schedule.warmup=2000 steps are more than trainer.max_steps="):
        trainer_of(lasting(folder, max_tokens=640, schedule={"name": "cosine", "warmup": 2000}))


def test_a_number_of_steps_is_kept(folder: Path) -> None:
    settings = config(folder)
    assert with_steps(settings, trainer_of(settings).data, 16) is settings
