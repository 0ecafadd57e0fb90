"""Low-rank adapters: only they are trained; evaluation, checkpoints and samples use the merged model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import CheckpointError, ConfigError
from modular_gpt.checkpoint import load_checkpoint, read_tensors
from modular_gpt.training import load_config
from modular_gpt.training.estimate import estimate
from modular_gpt.training.lora import LoraConfig, plain_name
from modular_gpt.training.trainer import Trainer
from tests.training.small import assert_same_ending, config, run, stop_after, trainer_of

peft = pytest.importorskip("peft", reason="the extra `peft` is not installed")
pytestmark = pytest.mark.usefixtures("fast")

KINDS: list[dict[str, Any]] = [{}, {"attention": "mla", "pos": "alibi"}, {"attention": "gqa", "ffn": "moe"}]


@pytest.fixture
def base(folder: Path) -> str:
    return str(run(config(folder, max_steps=2, sample_tokens=0)).directory)


def lora(folder: Path, base: str, model: dict[str, Any] | None = None, **settings: Any) -> Any:
    return config(folder, model, **{"init_from": base, "lora": {"rank": 2, "alpha": 8.0}, **settings})


def own_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_only_adapters_are_trained_and_merging_is_exact(changes: dict[str, Any], folder: Path) -> None:
    source = str(run(config(folder, changes, max_steps=1, sample_tokens=0)).directory)
    trainer = trainer_of(lora(folder, source, changes))
    start = own_weights(trainer)
    for step in range(4):
        trainer.progress.step = step
        trainer.update()
    end = own_weights(trainer)
    assert all(torch.equal(end[name], start[name]) != (".lora_" in name) for name in end)
    experts = [name for name in end if "ffn.parametrizations" in name and ".lora_" in name]
    assert bool(experts) == (changes.get("ffn") == "moe") and not any(
        "router" in name for name in end if "lora" in name
    )
    ids = trainer.batches.batch(0)[0]
    plain = trainer_of(config(folder, changes)).model.eval()
    with torch.no_grad():
        expected = trainer.model.eval()(ids)
        with trainer.eval_weights():
            torch.testing.assert_close(trainer.model(ids), expected, rtol=1e-4, atol=1e-5)
            plain.load_state_dict(trainer.weights())
            assert torch.equal(plain(ids), trainer.model(ids))
            cache = plain.new_cache(len(ids))
            torch.testing.assert_close(plain(ids, cache=cache), trainer.model(ids, cache=trainer.model.new_cache(4)))
    after = own_weights(trainer)
    assert all(torch.equal(after[name], end[name]) for name in end)
    assert all(parameter.requires_grad == (".lora_" in name) for name, parameter in trainer.model.named_parameters())


@pytest.mark.parametrize(
    "settings",
    [{}, {"ema_decay": 0.9}, {"optim": "muon", "gradient_accumulation": 2, "activation_checkpointing": 1}],
    ids=str,
)
def test_resumed_bitwise(settings: dict[str, Any], base: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**settings, "lora": {"rank": 2, "dropout": 0.2}}
    whole = run(lora(folder, base, **settings)).directory
    stopped = lora(folder, base, **settings)
    for stop in (3, 8):  # the run resumes from its first stop and is stopped again
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            stopped = load_config(run(stopped).directory)
    assert_same_ending(whole, run(stopped).directory)


def test_checkpoints_are_merged_models_with_the_reported_loss(base: str, folder: Path) -> None:
    optim = {"name": "adamw", "learning_rate": 3.0}  # so large that the best step is not the last one
    settings = lora(
        folder, base, final_evaluation=True, optim=optim, schedule="constant", eval_interval=2, ema_decay=0.1
    )
    result = run(settings)
    assert result.outcome is not None and result.outcome.best_step < 12
    saved = load_checkpoint(result.directory)
    trainer = trainer_of(config(folder))
    assert saved.model.state_dict().keys() == trainer.model.state_dict().keys()
    trainer.model.load_state_dict(saved.model.state_dict())
    assert trainer.validation.loss(0) == pytest.approx(result.outcome.loss, abs=1e-6)
    assert saved.meta["progress"]["step"] == result.outcome.best_step
    before = load_checkpoint(base).model.state_dict()
    layers = read_tensors(result.directory / "checkpoints" / "best", "adapters")
    for name, tensor in saved.model.state_dict().items():
        adapted = name.replace(".weight", ".base_layer.weight") in layers
        assert torch.equal(tensor, before[name]) != adapted, name


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        ([], ["down", "key", "out", "query", "up", "value"]),
        (["query", "value"], ["query", "value"]),
        (["*.ffn.*"], ["down", "up"]),
        (["blocks.1.attention.out"], ["out"]),
    ],
    ids=str,
)
def test_which_layers_are_adapted(patterns: list[str], chosen: list[str], base: str, folder: Path) -> None:
    trainer = trainer_of(lora(folder, base, lora={"rank": 1, "targets": patterns}))
    assert trainer.adapters is not None
    names = [plain_name(name).removesuffix(".weight") for name in trainer.adapters.adapted]
    assert sorted({name.rpartition(".")[2] for name in names}) == chosen
    assert len(names) == (1 if patterns == ["blocks.1.attention.out"] else 2 * len(chosen))


def test_invalid_targets_are_refused(base: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"lora.targets: no linear layer matches '\*.qery'; there are blocks.*query"):
        trainer_of(lora(folder, base, lora={"rank": 2, "targets": ["qery"]}))
    with pytest.raises(ConfigError, match=r"lora.rank must be above 0"):
        lora(folder, base, lora={"rank": 0})
    with pytest.raises(ConfigError, match=r"lora.rank=2 adapts a model that was trained: give one by init_from="):
        run(config(folder, lora={"rank": 2}))
    with pytest.raises(ConfigError, match="lora: no setting 'rnk'; did you mean 'rank'"):
        lora(folder, base, lora={"rnk": 2})


@pytest.mark.parametrize("change", [{"rank": None}, {"rank": 4}, {"alpha": 1.0}, {"targets": ["query"]}], ids=str)
def test_settings_that_cannot_change_at_a_resume(change: dict[str, Any], base: str, folder: Path) -> None:
    directory = run(lora(folder, base, max_steps=4)).directory
    settings = load_config(directory)
    settings.trainer.max_steps = 8
    for name, value in change.items():
        setattr(settings.lora, name, value)
    with pytest.raises(CheckpointError, match=rf"was trained with lora.{next(iter(change))}=.*init_from="):
        run(settings)


def test_a_run_may_start_from_merged_weights(base: str, folder: Path) -> None:
    first = run(lora(folder, base, max_steps=3)).directory
    second = run(lora(folder, str(first), max_steps=3, lora={"rank": 3})).directory
    third = run(config(folder, init_from=str(second), max_steps=3)).outcome
    assert third is not None


def test_the_estimate_includes_adapters(base: str, folder: Path) -> None:
    settings = lora(folder, base)
    model = replace(settings.model, vocab_size=256)
    whole, adapted = (estimate(model, "adamw", settings.trainer, each) for each in (LoraConfig(), settings.lora))
    trainer = trainer_of(settings)
    trained = sum(parameter.nbytes for parameter in trainer.optimizer.parameters())
    assert adapted.gradients == trained < whole.gradients / 2
    assert adapted.weights == whole.weights + trained
    assert adapted.optimizer == sum(2 * p.nbytes + 4 for p in trainer.optimizer.parameters())
    assert adapted.flops_per_token < whole.flops_per_token


def test_without_the_package(base: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'modular-gpt\[peft\]'"):
        run(lora(folder, base))


def test_new_parameters_are_trained_and_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wider vocabulary, a router and a latent are new; frozen, they would stay random."""
    source = str(run(config(folder, max_steps=1, sample_tokens=0)).directory)
    changed = {"attention": "mla", "ffn": "moe", "vocab_size": 260}
    settings = lora(folder, source, changed, sample_tokens=0)
    trainer = trainer_of(settings)
    trained = {plain_name(n) for n, p in trainer.model.named_parameters() if p.requires_grad and ".lora_" not in n}
    assert trained == set(trainer.adapters.new_weights)
    assert {"embedding.weight", "blocks.0.attention.latent.weight", "blocks.0.ffn.router.weight"} <= trained
    assert "blocks.0.attention_norm.weight" not in trained
    start = own_weights(trainer)
    for step in range(3):
        trainer.progress.step = step
        trainer.update()
    moved = {plain_name(n) for n, tensor in own_weights(trainer).items() if not torch.equal(tensor, start[n])}
    assert trained <= moved | {n for n in trained if n.endswith("bias")}
    whole = run(settings).directory
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        directory = run(lora(folder, source, changed, sample_tokens=0, runs=str(folder / "stopped"))).directory
    assert_same_ending(whole, run(load_config(directory)).directory)
