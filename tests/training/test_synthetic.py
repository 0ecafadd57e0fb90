"""Training on a synthetic task: exact resume, accuracy beside the loss, independent of micro-batches."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt.cli import evaluate as evaluate_command
from modular_gpt.data import build_corpus, build_tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.model.loss import LossConfig
from modular_gpt.training import train
from modular_gpt.training.metrics import Curves, read_metrics
from modular_gpt.training.plot import title
from tests.training.small import config, trainer_of
from tests.training.test_resume import assert_same_ending, stop_and_go

LAG = {"name": "synthetic", "task": "lag", "vocab_size": 8, "lag": 2, "validation_samples": 30}


def settings(folder: Path, model: dict[str, Any] | None = None, **others: Any) -> Any:
    return config(folder, model, data=LAG, **others)


def test_it_is_learned_and_its_accuracy_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = {"name": "adamw", "learning_rate": 0.03}
    result = train(
        settings(folder, max_steps=120, eval_interval=60, optim=fast, schedule="cosine", final_evaluation=True)
    )
    printed = capsys.readouterr().out
    assert result.outcome is not None and result.outcome.accuracy is not None
    assert result.outcome.accuracy > 0.9 and result.outcome.loss < 0.5 * math.log(8)
    assert result.outcome.epochs is None and result.outcome.bits_per_byte is None
    entries = [entry for entry in read_metrics(result.directory) if "validation_loss" in entry]
    assert all(0 <= entry["validation_accuracy"] <= 1 and "bits_per_byte" not in entry for entry in entries)
    assert entries[0]["validation_accuracy"] < entries[-1]["validation_accuracy"]
    assert f"accuracy         {result.outcome.accuracy:.2%} of the targets" in printed
    assert "new rows of the task lag at every step, 30 to validate" in printed and "all validation rows" in printed
    assert "per byte" not in title(result.directory, Curves(read_metrics(result.directory)))
    info = json.loads((result.directory / "run.json").read_text())
    assert info["data"]["corpus"]["task"] == "lag"


@torch.no_grad()
def test_loss_and_accuracy_are_means_over_the_counted_targets(folder: Path) -> None:
    for rows in (4, 7):
        trainer = trainer_of(settings(folder, batch_size=rows))
        x, y = next(trainer.data.evaluation(16, 30, 30))
        logits, counted = trainer.model.eval()(x), y != -100
        expected = torch.nn.functional.cross_entropy(logits[counted], y[counted])
        assert trainer.validation.loss(0) == pytest.approx(float(expected), abs=1e-5)
        share = (logits.argmax(-1)[counted] == y[counted]).double().mean()
        assert trainer.validation.accuracy == pytest.approx(float(share), abs=1e-6)


@pytest.mark.parametrize("chunk", [None, 40])
def test_counting_hits_does_not_change_the_loss(chunk: int | None) -> None:
    torch.manual_seed(0)
    model = GPTModel(vocab_size=13, d_model=16, n_heads=2, n_layers=1, context_length=9)
    x, y = torch.randint(13, (3, 9)), torch.randint(13, (3, 9))
    y[:, ::2] = -100
    for others in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}):
        plain = model(x, y, loss=LossConfig(chunk=chunk, **others))
        counting = model(x, y, loss=LossConfig(chunk=chunk, accuracy=True, **others))
        assert torch.equal(plain.loss, counting.loss) and plain.losses.keys() == counting.losses.keys()
        hits = (model(x).argmax(-1) == y).sum() / (y != -100).sum()
        assert plain.accuracy is None and torch.equal(counting.accuracy, hits)


def test_a_stopped_and_resumed_run_ends_equal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(settings(folder), quiet=True).directory
    assert_same_ending(whole, stop_and_go(folder, monkeypatch, [3, 5, 8], data=LAG))


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_are_weighted_by_their_targets(accumulation: int, folder: Path) -> None:
    """Rows of mqar have equally many targets; the targets of every micro-batch have equal weight."""
    found = []
    for count in (1, accumulation):
        trainer = trainer_of(settings(folder, gradient_accumulation=count))
        trainer.update()
        found.append(trainer.averages.read())
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], abs=1e-6)
    assert found[0]["gradient_norm"] == pytest.approx(found[1]["gradient_norm"], rel=1e-4)


def test_a_trained_model_is_the_source_of_another_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = train(settings(folder), quiet=True)
    other = {**LAG, "lag": 3}
    train(config(folder, data=other, init_from=str(source.directory), max_steps=2, eval_interval=2))
    assert "on the first 112 tokens to validate" in capsys.readouterr().out  # 8 rows of 14 targets


def test_it_cannot_be_evaluated_as_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(settings(folder, max_steps=2, eval_interval=2), quiet=True).directory
    assert evaluate_command.main([f"checkpoint={run}"]) != 0
    assert "was not trained on text, and its run has reported the loss" in capsys.readouterr().err


def test_the_checkpoint_generates_ids(folder: Path) -> None:
    from modular_gpt import load_model

    run = train(settings(folder, max_steps=2, eval_interval=2), quiet=True).directory
    model, tokenizer = load_model(run)
    assert model.config.vocab_size == 8
    text = tokenizer.decode(model.generate(torch.tensor([tokenizer.encode("1 2 3")]), 4)[0])
    assert text.startswith("1 2 3 ") and len(text.split()) == 7
    assert build_tokenizer({"name": "ids", "vocab_size": 8}).fingerprint == tokenizer.fingerprint
    assert build_corpus(LAG).fingerprint != build_corpus({**LAG, "lag": 4}).fingerprint
