"""Answers to records: evaluated during training, and written to a file by mgpt-eval."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.cli.evaluate import main
from modular_gpt.core.errors import ConfigError
from modular_gpt.training import RunConfig, train
from modular_gpt.training.metrics import read_metrics

FIXED = {"sample_tokens": 0, "eval_batches": 1, "device": "cpu", "compile": False, "threads": 1}
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def config(folder: Path, data: Any, **trainer: Any) -> RunConfig:
    return RunConfig(
        model={"d_model": 32, "n_layers": 2, "n_heads": 2, "context_length": 16},
        data=data,
        optim={"name": "muon", "learning_rate": 0.02},
        schedule={"name": "cosine", "warmup": 0.1},
        trainer={**FIXED, "max_steps": 40, "eval_interval": 20, "batch_size": 14, **trainer},
        runs=str(folder / "runs"),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a small task, and a run that memorised it."""
    folder = tmp_path_factory.mktemp("answers")
    lines = [{"prompt": day, "completion": f" {DAYS[(number + 1) % 7]}"} for number, day in enumerate(DAYS)]
    (folder / "days.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODULAR_GPT_CACHE", str(folder / "cache"))
        path = str(folder / "days.jsonl")
        data = {"name": "records", "path": path, "validation": path}
        result = train(config(folder, data, eval_generate=5), quiet=True)
    return folder, result.directory


def test_answers_are_measured_at_each_evaluation(run: tuple[Path, Path]) -> None:
    entries = [entry for entry in read_metrics(run[1]) if "validation_loss" in entry]
    assert [entry["step"] for entry in entries] == [20, 40]
    assert entries[-1]["exact_match"] == 1.0 and all(entry["exact_match"] * 5 % 1 == 0 for entry in entries)


def test_the_command_writes_each_prediction(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = run[0] / "days.jsonl"
    assert main([f"checkpoint={run[1]}", f"records={records}", "device=cpu", "predictions=out.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "exact match" in printed and "100.00% of the generated answers" in printed and "out.jsonl" in printed
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in written] == DAYS
    assert [line["generated"].strip() for line in written] == [line["expected"].strip() for line in written]
    assert all(line["scores"]["exact_match"] == 1 and line["scores"]["logprob"] < 0 for line in written)


def test_the_default_records_are_the_validation_records_of_the_run(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path))
    given = [f"checkpoint={run[1]}", "device=cpu", "limit=3", "json=true", "max_new_tokens=0", "predictions=null"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)["records"]
    assert found["records"] == 3 and "exact_match" not in found
    entries = [entry for entry in read_metrics(run[1]) if "validation_loss" in entry]
    assert abs(found["loss"] - entries[-1]["validation_loss"]) < 0.1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["records=none.jsonl"], "there is no file 'none.jsonl'"),
        (["records={days}", "text={days}"], "records exclude text and corpus: give one of them"),
        (["records={days}", "max_new_tokens=-1"], "max_new_tokens must be 0 or more, got -1"),
        (["records={days}", "predictions=none/out.jsonl"], "cannot write 'none/out.jsonl'"),
        (["records={days}", "fields={{prompt: question}}"], "there is no field 'question', which data.fields names"),
        (["text={days}", "template=chatml"], "template is for records: give records=..., or leave it out"),
        (["text={days}", "limit=3"], "limit is for tasks and records: give tasks=... or records=..., or leave it out"),
    ],
)
def test_mistakes(
    settings: list[str],
    sentence: str,
    run: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [setting.format(days=run[0] / "days.jsonl") for setting in settings]
    assert main([f"checkpoint={run[1]}", "device=cpu", *given]) == 2
    found = capsys.readouterr().err.strip()
    assert sentence in found and "\n" not in found


def test_text_has_no_questions(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text " * 50)
    with pytest.raises(ConfigError, match=r"trainer\.eval_generate asks validation records: use data=records"):
        train(config(tmp_path, {"name": "text", "path": str(tmp_path / "a.txt")}, eval_generate=4), quiet=True)
    assert "lm_eval" not in sys.modules


def test_a_failure_does_not_end_the_training(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> list[str]:
        raise RuntimeError("no memory")

    monkeypatch.setattr("modular_gpt.training.validation.answer_questions", failing)
    path = str(run[0] / "days.jsonl")
    data = {"name": "records", "path": path, "validation": path}
    result = train(config(tmp_path, data, eval_generate=2, max_steps=2, eval_interval=1), quiet=True)
    assert result.outcome is not None and caplog.text.count("no record could be answered (no memory)") == 1
    assert not any("exact_match" in entry for entry in read_metrics(result.directory))
