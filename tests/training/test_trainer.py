"""A training step equals that of a plain PyTorch loop, and satisfies further laws."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modular_gpt.core.errors import UserError
from modular_gpt.data import BatchSource, sequential
from modular_gpt.runtime.device import seed_generators
from modular_gpt.training.trainer import MAX_SKIPPED, Trainer
from tests.training.small import ADAMW, config, trainer_of

EXACT = 5e-6


def losses_of(trainer: Trainer, steps: int) -> list[float]:
    """The training loss of each step."""
    losses = []
    for _ in range(steps):
        trainer.update()
        losses.append(trainer.averages.read().get("loss", math.nan))
        trainer.progress.step += 1
    return losses


def test_a_run_equals_a_plain_loop(folder: Path) -> None:
    """AdamW, torch's schedulers for warmup and cosine, clipping, weight decay on matrices only."""
    steps, warmup, clip = 30, 5, 0.5
    settings = config(
        folder,
        {"ffn": "swiglu", "norm": "rmsnorm"},
        max_steps=steps,
        gradient_clip=clip,
        optim={"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.2},
        schedule={"name": "cosine", "warmup": warmup, "final": 0.1},
    )
    trainer = trainer_of(settings)
    model = trainer_of(settings).model
    decayed = [p for n, p in model.named_parameters() if "blocks" in n and n.endswith("weight") and "norm" not in n]
    rest = [p for p in model.parameters() if not any(p is q for q in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.2}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.99), fused=False, foreach=False)
    rising = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - 1 - warmup, eta_min=3e-4)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [rising, falling], [warmup])
    source = BatchSource(trainer.data.train, 16, 4, seed=0)
    expected = []
    for step in range(steps):
        x, y = source.batch(step)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        expected.append(loss.item())
    assert losses_of(trainer, steps) == pytest.approx(expected, abs=2e-5)
    assert expected[-1] < expected[0] - 1
    for a, b in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-4


@pytest.mark.parametrize("accumulation", [2, 4, 16])
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_accumulated_gradients_equal_those_of_the_whole_batch(accumulation: int, optim: str, folder: Path) -> None:
    recipe = {"optim": {"name": optim, "learning_rate": 4e-3}, "schedule": "cosine"}
    whole = trainer_of(config(folder, batch_size=16, **recipe))
    accumulated = trainer_of(config(folder, batch_size=16, gradient_accumulation=accumulation, **recipe))
    assert losses_of(accumulated, 8) == pytest.approx(losses_of(whole, 8), abs=EXACT)


def test_loss_terms_are_trained_and_not_validated(folder: Path) -> None:
    plain, added = trainer_of(config(folder)), trainer_of(config(folder, label_smoothing=0.2, z_loss=0.01))
    assert added.validation.loss(2) == plain.validation.loss(2)
    x, y = added.batches.batch(0)
    logits = added.model(x).flatten(0, 1)
    smooth = F.cross_entropy(logits, y.flatten(), label_smoothing=0.2).item()
    z_loss = 0.01 * logits.logsumexp(-1).square().mean().item()
    added.update()
    metrics = added.averages.read()
    assert metrics["loss"] == pytest.approx(smooth + z_loss, abs=EXACT)
    assert metrics["z_loss"] == pytest.approx(z_loss, abs=EXACT)
    assert metrics["cross_entropy"] == pytest.approx(losses_of(plain, 1)[0], abs=EXACT)
    assert not torch.equal(added.model.embedding.weight, plain.model.embedding.weight)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_every_target_counts_the_same_in_ragged_batches(
    accumulation: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = BatchSource.batch

    def ragged(self: BatchSource, step: int, *args: Any) -> Any:
        x, y = batch(self, step, *args)
        lengths = torch.randint(0, 17, (len(y), 1), generator=torch.Generator().manual_seed(step))
        lengths[0] = 16
        return x, y.masked_fill(torch.arange(16) >= lengths, -100)

    monkeypatch.setattr(BatchSource, "batch", ragged)
    whole = trainer_of(config(folder, batch_size=8, **ADAMW))
    accumulated = trainer_of(config(folder, batch_size=8, gradient_accumulation=accumulation, **ADAMW))
    assert losses_of(accumulated, 12) == pytest.approx(losses_of(whole, 12), abs=EXACT)


@pytest.mark.parametrize("batches", [0, 3])
def test_the_validation_loss_is_the_mean_over_tokens(batches: int, folder: Path) -> None:
    trainer = trainer_of(config(folder, {"dropout": 0.5}))
    ids = np.array(trainer.data.validation.array)
    model = trainer.model.eval()
    expected = []
    if batches == 0:
        for start in range(0, len(ids) - 1, 16):
            window = torch.tensor(ids[start : start + 17].astype(int))
            losses = F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
            expected += losses.tolist()
        assert len(expected) == len(ids) - 1
    else:
        source = BatchSource(trainer.data.validation, 16, 4, seed=0)
        for number in range(2 * batches):  # of 4 windows each; an evaluation batch has 8
            x, y = source.batch(number)
            expected += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").tolist()
    assert trainer.validation.loss(batches) == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert trainer.model.training


def test_the_last_validation_batch_is_not_lost(folder: Path) -> None:
    trainer = trainer_of(config(folder))
    targets = [y for _, y in sequential(trainer.data.validation, 16, 4)]
    counted = sum(int((y != -100).sum()) for y in targets)
    assert counted == trainer.data.validation.count - 1
    assert counted % 64, "the text is to end within a batch, or this says nothing"


def test_dropout_differs_between_steps_and_seeds_but_not_between_runs(folder: Path) -> None:
    model = {"dropout": 0.5}
    first = losses_of(trainer_of(config(folder, model)), 3)
    assert first == losses_of(trainer_of(config(folder, model)), 3)
    torch.manual_seed(99)
    trainer = trainer_of(config(folder, model))
    torch.manual_seed(7)
    torch.rand(5)
    assert losses_of(trainer, 3) == first
    trainer = trainer_of(config(folder, model))
    trainer.seed = 1
    assert losses_of(trainer, 1) != first[:1]


class Poison:
    """A gradient hook that injects a value at some steps."""

    def __init__(self, trainer: Trainer, steps: set[int], value: float) -> None:
        self.trainer, self.steps, self.value = trainer, steps, value
        trainer.model.blocks[1].ffn.down.weight.register_hook(self)

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.value if self.trainer.progress.step in self.steps else gradient


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optim", ["adamw", "muon", "adafactor"])
def test_a_gradient_that_is_not_finite_skips_the_update(value: float, optim: str, folder: Path) -> None:
    trainer = trainer_of(config(folder, optim=optim))
    Poison(trainer, {2, 4}, value)
    for step in range(7):
        trainer.progress.step = step
        before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        state = {name: tensor.clone() for name, tensor in trainer.optimizer.state().items()}
        trainer.update()
        same = all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
        assert same == (step in {2, 4})
        assert trainer.progress.skipped == (step in {2, 4})
        if step in {2, 4}:
            assert all(torch.equal(state[name], tensor) for name, tensor in trainer.optimizer.state().items())
    assert math.isfinite(trainer.averages.read().get("loss", math.nan))


def test_counts_of_a_skipped_update_are_discarded(folder: Path) -> None:
    """Balancing by a bias ignores the skipped step and its diagnosis, which also runs the experts."""
    model = {"ffn": {"name": "moe", "balance": "bias", "n_experts": 4}}
    poisoned, other = trainer_of(config(folder, model)), trainer_of(config(folder, model))
    handle = poisoned.model.final_norm.register_forward_hook(lambda module, inputs, output: output * math.nan)
    poisoned.update()
    handle.remove()
    assert poisoned.progress.skipped == 1
    assert not any(block.ffn.load.any() for block in poisoned.model.blocks)
    for trainer in (poisoned, other):
        trainer.progress.step = 1
        trainer.update()
    expected = other.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in poisoned.model.state_dict().items())
    assert any(name.endswith("select_bias") and tensor.any() for name, tensor in expected.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["embedding", "blocks.0.attention.value", "blocks.1.ffn.up", "final_norm"])
def test_the_first_module_with_non_finite_values_is_named(
    name: str, value: float, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(config(folder))
    handle = trainer.model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: output.index_fill(-1, torch.tensor([1]), value)
    )
    trainer.update()
    handle.remove()
    assert f"step 0: the output of {name} (" in caplog.text


def test_a_large_but_finite_gradient_is_clipped_and_used(folder: Path) -> None:
    trainer = trainer_of(config(folder))
    Poison(trainer, {1}, 1e12)
    before = trainer.model.embedding.weight.clone()
    losses_of(trainer, 2)
    assert trainer.progress.skipped == 0
    assert 0 < (trainer.model.embedding.weight - before).abs().max() < 0.1


def test_a_training_that_broke_down_stops(folder: Path) -> None:
    trainer = trainer_of(config(folder))
    Poison(trainer, set(range(100)), math.nan)
    with pytest.raises(
        UserError, match=r"in the last 10 steps, up to step 9 \(the gradient of blocks.1.ffn.down.weight"
    ):
        losses_of(trainer, 100)
    assert trainer.progress.skipped == MAX_SKIPPED


def test_a_sample_is_deterministic_and_does_not_change_the_training(folder: Path) -> None:
    trainer = trainer_of(config(folder, {"dropout": 0.5}, sample_prompt="the cat", sample_tokens=40))
    state = torch.get_rng_state()
    text = trainer.validation.sample()
    assert text.startswith("the cat")
    assert trainer.validation.sample() == text
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_every_precision_learns(precision: str, folder: Path) -> None:
    settings = config(folder, max_steps=30, optim={"name": "adamw", "learning_rate": 5e-3})
    trainer = trainer_of(settings)
    trainer.precision = precision
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16", init_scale=2.0**10)
    exact = losses_of(trainer_of(settings), 30)
    losses = losses_of(trainer, 30)
    assert losses[-1] < losses[0] - 1
    assert losses == pytest.approx(exact, abs=0.1)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**64 - 1])
def test_the_generators_are_seeded_like_pytorch(seed: int) -> None:
    torch.manual_seed(seed)
    expected = torch.rand(4)
    seed_generators(seed, torch.device("cpu"))
    assert torch.equal(torch.rand(4), expected)
