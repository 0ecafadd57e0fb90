"""The sets of docs/tasks.md are learned: generated and multiple-choice answers to held-out records."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modular_gpt.checkpoint.resolve import load_with_tokenizer
from modular_gpt.cli.evaluate_records import RecordSource, on_records, trained_on
from modular_gpt.evaluation import RecordOptions
from modular_gpt.training import RunConfig, train
from modular_gpt.training.metrics import read_metrics
from tests.docs.pages import ROOT

STEPS = {"dates": 400}  # the other sets take longer


@pytest.fixture
def task_sets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(ROOT / "docs" / "scripts"), *sys.path])
    import task_sets

    return task_sets


def test_no_record_is_in_both_files(task_sets: ModuleType, tmp_path: Path) -> None:
    for name in task_sets.TASKS:
        folder = task_sets.write_task(name, tmp_path, train=400, test=50)
        train_lines, test_lines = ((folder / f"{split}.jsonl").read_text().splitlines() for split in ("train", "test"))
        assert len(test_lines) == 50 and len(train_lines) == 400 and not set(train_lines) & set(test_lines)


def config(folder: Path, runs: Path, steps: int, **others: Any) -> RunConfig:
    quiet = {"sample_tokens": 0, "eval_interval": steps, "final_evaluation": False, "eval_batches": 4}
    fixed = {"device": "cpu", "compile": False, "threads": 1, "precision": "float32"}
    return RunConfig(
        model={"d_model": 32, "n_layers": 2, "n_heads": 4, "context_length": 56, "pos": {"name": "rope"}},
        data={"name": "records", "path": str(folder / "train.jsonl"), "validation": str(folder / "test.jsonl")},
        optim={"name": "muon", "learning_rate": 0.02},
        schedule={"name": "cosine", "warmup": 20},
        trainer={"max_steps": steps, "batch_size": 8, "eval_generate": 100, **quiet, **fixed},
        runs=str(runs),
        **others,
    )


@pytest.mark.parametrize("name", STEPS)
def test_the_task_is_learned(name: str, task_sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    folder = task_sets.write_task(name, tmp_path)
    run = train(config(folder, tmp_path / "runs", STEPS[name]), quiet=True).directory
    answered = [entry["exact_match"] for entry in read_metrics(run) if "exact_match" in entry]
    assert answered[-1] >= 0.9
    source = RecordSource(str(folder / "test.jsonl"), {}, None, None, None)
    loaded = load_with_tokenizer(str(run), "cpu")
    found = on_records(loaded, source, trained_on(str(run)), RecordOptions(32), None)
    assert found["exact_match"] == pytest.approx(answered[-1], abs=0.02)
