"""Learning rates and frozen parameters by patterns of names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.checkpoint import load_checkpoint
from modular_gpt.core.registry import entries
from modular_gpt.optim import build_optimizer
from modular_gpt.training import load_config
from modular_gpt.training.estimate import estimate
from modular_gpt.training.trainer import Trainer
from tests.training.small import assert_same_ending, config, run, stop_after, trainer_of

SCALE = {"embedding*": 0.1, "blocks.0.*bias": 3.0, "blocks.0.*": 0.5}


def steps(trainer: Trainer, count: int) -> dict[str, torch.Tensor]:
    """The weights after some steps."""
    for step in range(count):
        trainer.progress.step = step
        trainer.update()
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("optim", entries("optim"))
def test_each_parameter_has_its_learning_rate(optim: str) -> None:
    model = GPTModel(GPTConfig(vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=16, ffn="moe"))
    plain = build_optimizer({"name": optim}, model)
    scaled = build_optimizer({"name": optim, "learning_rate_scale": SCALE}, model)
    rates = {plain.names[p]: group["peak"] for group in plain.groups() for p in group["params"]}
    found = {scaled.names[p]: group["peak"] for group in scaled.groups() for p in group["params"]}
    assert found.keys() == rates.keys() and len(scaled.parameters()) == len(rates)
    for name, rate in rates.items():
        first = 0.1 if name.startswith("embedding") else 0.5 if name.startswith("blocks.0.") else 1.0
        assert found[name] == rate * (3.0 if first == 0.5 and name.endswith("bias") else first), name
    decays = [{scaled.names[p]: g["weight_decay"] for g in o.groups() for p in g["params"]} for o in (plain, scaled)]
    assert decays[0] == {plain.names[p]: g["weight_decay"] for g in plain.groups() for p in g["params"]} == decays[1]


def test_a_step_is_scaled(folder: Path) -> None:
    """The first step of AdamW is independent of the size of the gradient, and so proportional to the learning rate."""
    settings: dict[str, Any] = {"name": "adamw", "weight_decay": 0.0}
    start = trainer_of(config(folder)).model.state_dict()
    plain = steps(trainer_of(config(folder, optim=settings)), 1)
    trainer = trainer_of(config(folder, optim={**settings, "learning_rate_scale": {"blocks.1.*": 0.25}}))
    for name, scaled in steps(trainer, 1).items():
        factor = 0.25 if name.startswith("blocks.1.") else 1.0
        torch.testing.assert_close(scaled - start[name], factor * (plain[name] - start[name]), rtol=1e-3, atol=1e-7)
    assert trainer.optimizer.present_rate == trainer.optimizer.learning_rate * trainer.schedule.factor(0)


@pytest.mark.parametrize("optim", entries("optim"))
def test_frozen_parameters_do_not_change(optim: str, folder: Path) -> None:
    frozen = ["embedding*", "blocks.0.*"]
    trainer = trainer_of(config(folder, {"ffn": {"name": "moe", "balance": "bias"}}, optim=optim, frozen=frozen))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    steps(trainer, 3)
    for name, tensor in trainer.model.state_dict().items():
        still = name.startswith(("embedding", "blocks.0."))
        assert torch.equal(tensor, before[name]) == still, name
    assert not any(key.startswith(("embedding", "blocks.0.")) for key in trainer.optimizer.state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"frozen": ["embeding*"]},
            r"trainer.frozen: no trained parameter matches 'embeding\*'; there are embedding.weight",
        ),
        ({"frozen": ["blocks.0"]}, r"trainer.frozen: .*did you mean 'blocks.0.\*'\?"),
        ({"frozen": ["*.atention.*"]}, r"'\*.atention.\*'; there are .*attention"),
        ({"frozen": ["*"]}, "leaves nothing to train"),
        ({"frozen": ["embedding*", "blocks*", "final_norm*"]}, "leaves nothing to train"),
        (
            {"optim": {"name": "adamw", "learning_rate_scale": {"head*": 2.0}}},
            r"optim.learning_rate_scale: no trained parameter",
        ),
        (
            {"optim": {"name": "adamw", "learning_rate_scale": {"embedding*": 2.0}}, "frozen": ["embedding*"]},
            "no trained parameter matches 'embedding",
        ),
    ],
    ids=str,
)
def test_invalid_patterns_are_refused(settings: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        trainer_of(config(folder, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [0.0, -1.0, "much"])
def test_invalid_factors_are_refused(factor: Any, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the factor of 'embedding\*' must be a number above 0"):
        config(folder, optim={"name": "adamw", "learning_rate_scale": {"embedding*": factor}})


@pytest.mark.parametrize("optim", entries("optim"))
@pytest.mark.parametrize("frozen", [["*bias", "*norm*", "embedding*"], ["*.query.weight", "blocks.*"]], ids=str)
def test_training_only_matrices_or_only_other_parameters(frozen: list[str], optim: str, folder: Path) -> None:
    trainer = trainer_of(config(folder, optim=optim, frozen=frozen))
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters() if tensor.requires_grad}
    after = steps(trainer, 2)
    assert before and not any(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.usefixtures("fast")
def test_frozen_parameters_of_a_source_model(folder: Path) -> None:
    """Fine-tuning: frozen parameters keep their values of the source model."""
    first = run(config(folder, max_steps=4)).directory
    second = run(config(folder, init_from=str(first), frozen=["blocks.0.*"], max_steps=4)).directory
    before, after = (load_checkpoint(directory).model.state_dict() for directory in (first, second))
    assert all(torch.equal(before[name], after[name]) == name.startswith("blocks.0.") for name in before)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("before", "after"), [(["blocks.0.*"], []), ([], ["blocks.0.*"])])
def test_frozen_patterns_may_change_at_a_resume(
    before: list[str], after: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers are unfrozen or frozen; parameters trained throughout continue with their optimizer state."""
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        directory = run(config(folder, frozen=before)).directory
    settings = load_config(directory)
    half = load_checkpoint(directory / "checkpoints" / "latest").model.state_dict()
    settings.trainer.frozen = after
    run(settings)
    end = load_checkpoint(directory / "checkpoints" / "latest").model.state_dict()
    still = {name for name in end if torch.equal(end[name], half[name])}
    assert still == ({name for name in end if name.startswith("blocks.0.")} if after else set())


@pytest.mark.usefixtures("fast")
def test_resumed_with_scaled_and_frozen_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {
        "optim": {"name": "muon", "learning_rate_scale": {"blocks.1.*": 0.5}},
        "frozen": ["blocks.0.ffn.*"],
        "ema_decay": 0.9,
    }
    whole = run(config(folder, **settings)).directory
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        directory = run(config(folder, runs=str(folder / "others"), **settings)).directory
    assert_same_ending(whole, run(load_config(directory)).directory)


def test_the_estimate_excludes_frozen_parameters(folder: Path) -> None:
    settings = config(folder, {"n_layers": 4, "vocab_size": 256}, ema_decay=0.9)
    whole = estimate(settings.model, "adamw", settings.trainer)
    settings.trainer.frozen = ["embedding*", "blocks.0.*", "blocks.1.*", "blocks.2.*"]
    frozen = estimate(settings.model, "adamw", settings.trainer)
    trainer = trainer_of(settings)
    trained = sum(parameter.nbytes for parameter in trainer.optimizer.parameters())
    assert frozen.weights == whole.weights
    assert frozen.gradients == frozen.average == trained < whole.gradients
    assert frozen.optimizer < 0.5 * whole.optimizer
    assert frozen.activations < 0.6 * whole.activations
    assert frozen.flops_per_token < whole.flops_per_token
