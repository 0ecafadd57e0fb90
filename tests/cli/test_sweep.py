"""Several runs from one command line: their directories, saved results and table."""

import csv
import json
import os
from pathlib import Path

import pytest

from modular_gpt.cli import hydra_answers
from modular_gpt.cli.sweep_table import JobResult, remarks, table
from modular_gpt.training import run as training_run
from tests.cli.conftest import TINY, Run

FIGURES = {"parameters": 3000, "bits_per_byte": 2.0, "tokens_per_second": 1000.0}


def result(number: int, name: str, seed: int, settings: list[str], loss: float) -> JobResult:
    return JobResult(number, name, seed, settings, loss=loss, **FIGURES)  # type: ignore[arg-type]


def test_repeated_seeds_are_averaged() -> None:
    results = [
        result(0, "mha-seed=1", 1, ["attention=mha"], 1.0),
        result(1, "mha-seed=2", 2, ["attention=mha"], 2.0),
        result(2, "gqa-seed=1", 1, ["attention=gqa"], 3.0),
        JobResult(3, "mla-seed=1", 1, ["attention=mla"], code=2, message="refused: too small"),
    ]
    lines = table(results).splitlines()
    assert lines[2].startswith("mha (2 seeds)") and "1.5000 +- 0.7071" in lines[2]
    assert lines[3].startswith("gqa-seed=1") and "3.0000" in lines[3] and "+-" not in lines[3]
    assert lines[4].split(maxsplit=1) == ["mla-seed=1", "refused: too small"]
    assert "means over seeds" in remarks(results)
    assert "one run with one seed" in remarks(results[2:3])


def test_a_sweep_over_seeds_is_one_row() -> None:
    lines = table([result(0, "seed=1", 1, [], 1.0), result(1, "seed=2", 2, [], 2.0)]).splitlines()
    assert len(lines) == 3 and lines[2].startswith("default (2 seeds)")


def test_the_table_is_saved_as_csv_and_json(run: Run, corpus: str, folder: Path) -> None:
    answer = run("train", "-m", *corpus.split(), *TINY, "attention=mha,linear", "pos=alibi")
    assert answer.code == 2 and "one run with one seed" in answer.out
    (saved,) = (folder / "runs").glob("*-multirun")
    assert f"Saved as results.csv and results.json in {saved}" in answer.out
    first, second = json.loads((saved / "results.json").read_text())
    assert (first["name"], first["code"], first["seed"], first["message"]) == ("mha", 0, 0, "")
    assert first["loss"] > 0 and Path(first["directory"], "run.json").is_file()
    assert second["code"] == 2 and second["message"].startswith("refused: ") and second["loss"] is None
    rows = list(csv.DictReader((saved / "results.csv").open()))
    assert [row["name"] for row in rows] == ["mha", "linear"]
    assert float(rows[0]["loss"]) == first["loss"] and rows[1]["loss"] == ""
    assert "attention=mha" in rows[0]["settings"].split()


def test_the_folder_of_a_sweep_can_be_chosen(run: Run, corpus: str, folder: Path) -> None:
    answer = run("train", "-m", *corpus.split(), *TINY, "attention=linear,linear", "pos=alibi", "hydra.sweep.dir=here")
    assert answer.code == 2
    assert (folder / "here" / "results.json").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_a_sentence_for_users(run: Run, corpus: str, folder: Path) -> None:
    (folder / "runs").mkdir(mode=0o500)
    check_refusal(run, corpus)


def test_a_folder_that_cannot_be_made_is_a_sentence(run: Run, corpus: str, folder: Path) -> None:
    (folder / "runs").write_text("a file")
    check_refusal(run, corpus)


def check_refusal(run: Run, corpus: str) -> None:
    answer = run("train", "-m", *corpus.split(), *TINY, "seed=1,2")
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("error: no runs can be started in ") and "set runs=<directory>" in answer.err


def test_an_exception_in_a_job_is_a_row_of_the_table(
    run: Run, corpus: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(training_run, "train", fail)
    with pytest.raises(ZeroDivisionError):
        run("train", "-m", *corpus.split(), *TINY, "seed=1,2")
    printed = capsys.readouterr().out
    assert "seed=1" in printed and "failed: ZeroDivisionError: a bug" in printed


@pytest.mark.parametrize("separator", [" ", "\n"])  # of bash, and of other shells
def test_tab_completion_offers_no_schema(
    separator: str, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = separator.join(["attention=gqa", "attention=gqa_schema", "attention=mha", "attention=mha_schema"])

    def completed(command: object, arguments: list[str], where: object, job: object) -> None:
        print(offered)

    monkeypatch.setattr(hydra_answers, "hydra_main", completed)
    answer = run("train", "--shell-completion", "query=bash")
    assert answer.out.split() == ["attention=gqa", "attention=mha"]
