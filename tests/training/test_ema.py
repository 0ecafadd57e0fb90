"""The moving average of the weights: equals its definition, and is evaluated, saved and sampled from."""

from pathlib import Path

import pytest
import torch

from modular_gpt import ConfigError
from modular_gpt.checkpoint import load_checkpoint, read_tensors
from modular_gpt.training import TrainerConfig, load_config
from modular_gpt.training.recorder import printable_text
from modular_gpt.training.trainer import Trainer
from tests.training.small import one_layer as config
from tests.training.small import run, stop_after, trainer_of

Weights = dict[str, torch.Tensor]


def weights(trainer: Trainer) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def equal(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def averaged(folder: Path, decay: float, steps: int, **settings: object) -> tuple[Weights, Weights]:
    """Reference: the average by its definition, and the trained weights, after some steps of a training without EMA."""
    trainer = trainer_of(config(folder, **settings))
    average = weights(trainer)
    for step in range(steps):
        trainer.progress.step = step
        trainer.update()
        kept = min(decay, (1 + step) / (10 + step))
        average = {name: kept * average[name] + (1 - kept) * now for name, now in weights(trainer).items()}
    return average, weights(trainer)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_the_weights_and_does_not_change_them(decay: float, folder: Path) -> None:
    expected, trained = averaged(folder, decay, 8)
    trainer = trainer_of(config(folder, ema_decay=decay))
    for step in range(8):
        trainer.progress.step = step
        trainer.update()
    assert equal(weights(trainer), trained)
    with trainer.eval_weights():
        shown = weights(trainer)
    for name, average in expected.items():
        torch.testing.assert_close(shown[name], average, rtol=1e-5, atol=1e-7)
    assert equal(weights(trainer), trained)
    assert equal(shown, trained) == (decay == 0.0)


def test_a_skipped_update_does_not_change_the_average(folder: Path) -> None:
    trainer = trainer_of(config(folder, ema_decay=0.9))
    trainer.model.blocks[0].ffn.up.weight.register_hook(lambda gradient: gradient * torch.nan)
    assert trainer.ema is not None
    before = {name: tensor.clone() for name, tensor in trainer.ema.held.items()}
    trainer.update()
    assert equal(trainer.ema.held, before)


def test_an_error_while_evaluating_restores_the_weights(folder: Path) -> None:
    trainer = trainer_of(config(folder, ema_decay=0.9))
    trainer.update()
    before = weights(trainer)
    with pytest.raises(KeyboardInterrupt), trainer.eval_weights():
        assert not equal(weights(trainer), before)
        raise KeyboardInterrupt
    assert equal(weights(trainer), before)


@pytest.mark.usefixtures("fast")
def test_the_saved_weights_are_the_evaluated_ones(folder: Path) -> None:
    """The best checkpoint has its reported loss and generates the sample that was shown."""
    settings = config(folder, ema_decay=0.9, final_evaluation=True, eval_batches=2)
    result = run(settings)
    assert result.outcome is not None
    for name, whole in (("latest", False), ("best", True)):
        saved = load_checkpoint(result.directory / "checkpoints" / name)
        trainer = trainer_of(config(folder))
        trainer.model.load_state_dict(saved.model.state_dict())
        measured = trainer.validation.loss(0 if whole else 2)
        reported = result.outcome.loss if whole else saved.meta["progress"]["best_loss"]
        assert measured == pytest.approx(reported, abs=1e-6)
        if not whole:
            shown = (result.directory / "samples.txt").read_text().rpartition("=== step 12\n")[2].strip("\n")
            assert shown == "\n".join(
                f"    | {printable_text(line)}" for line in trainer.validation.sample().split("\n")
            )


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("before", "after"), [(None, 0.9), (0.9, None), (0.5, 0.9)])
def test_an_average_may_be_started_stopped_and_changed_at_a_resume(
    before: float | None, after: float | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trained weights do not depend on the average."""
    whole = run(config(folder, runs=str(folder / "whole"))).directory
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        directory = run(config(folder, ema_decay=before)).directory
    settings = load_config(directory)
    settings.trainer.ema_decay = after
    run(settings)
    one, other = (load_checkpoint(path / "checkpoints" / "latest").meta for path in (whole, directory))
    assert one["progress"]["step"] == other["progress"]["step"] == 12
    file = "model" if after is None else "trained"
    trained = read_tensors(directory / "checkpoints" / "step_00000012", file)
    assert equal(trained, read_tensors(whole / "checkpoints" / "step_00000012", "model"))


@pytest.mark.usefixtures("fast")
def test_patience_evaluates_the_average(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The average does not improve, while the trained weights do."""
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda held, weights, share: None)
    result = run(config(folder, ema_decay=0.9, patience=2, eval_interval=2))
    assert result.outcome is not None
    assert (result.outcome.steps, result.outcome.best_step) == (6, 2)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_invalid_decays_are_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"trainer.ema_decay must lie in \[0, 1\)"):
        TrainerConfig(ema_decay=decay)
