"""Rounds, resuming after a kill, copies of a variant, and trials in other processes."""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import modular_gpt
from modular_gpt import CheckpointError, ConfigError
from modular_gpt.comparison import CompareResult, Comparison, run_trial
from modular_gpt.comparison.measure import tokens_to
from modular_gpt.comparison.workers import in_processes, in_this_process
from tests.comparison.small import comparison, invented, run
from tests.fresh import processes


def variants(folder: Path, *attentions: str) -> dict[str, Any]:
    return {name: run(folder, attention=name) for name in attentions or ("mha", "mqa")}


def losses(result: Any) -> dict[str, list[float]]:
    return {name: variant.values for name, variant in result.variants.items()}


class Killed(BaseException):
    """Simulates a kill: a BaseException, which no handler of exceptions catches."""


def killed_after(count: int) -> Any:
    """Executor that runs ``count`` trials and then raises Killed."""

    def execute(trials: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal count
        for trial in trials:
            if count == 0:
                raise Killed
            count -= 1
            yield run_trial(trial)

    return execute


def counting(done: list[str]) -> Any:
    """Executor that records the keys of its trials."""

    def execute(trials: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for result in in_this_process(trials):
            done.append(result["key"])
            yield result

    return execute


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> CompareResult:
    """A finished comparison that tunes the learning rates of two variants."""
    folder = tmp_path_factory.mktemp("tuned")
    return comparison(folder, variants(folder), lr="auto", seeds=1).run()


def test_a_killed_comparison_repeats_no_trial_and_ends_with_the_same_numbers(
    tmp_path: Path, tuned: CompareResult
) -> None:
    killed = comparison(tmp_path / "killed", variants(tmp_path), lr="auto", seeds=1)
    with pytest.raises(Killed):
        killed.run(killed_after(5))
    lines = killed.directory / "results.jsonl"
    finished = [json.loads(line)["key"] for line in lines.read_text().splitlines()]
    assert len(finished) == 5
    lines.write_bytes(lines.read_bytes()[:-20])  # the kill interrupted the last line
    finished.pop()
    done: list[str] = []
    result = Comparison.resumed(str(killed.directory), say=lambda text: None).run(counting(done))
    assert not set(done) & set(finished) and len(done) == len(set(done))
    assert losses(result) == losses(tuned)
    assert {name: v.learning_rate for name, v in result.variants.items()} == {
        name: v.learning_rate for name, v in tuned.variants.items()
    }


def test_more_seeds_keep_the_finished_trials(tmp_path: Path) -> None:
    first = comparison(tmp_path, variants(tmp_path), seeds=2)
    before = losses(first.run())
    done: list[str] = []
    after = losses(Comparison.resumed(str(first.directory), seeds=4, say=lambda text: None).run(counting(done)))
    assert len(done) == 4
    assert all(after[name][:2] == before[name] and len(after[name]) == 4 for name in before)


def test_another_process_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is forked from one that has imported the libraries, and so starts quickly."""
    context = processes()
    monkeypatch.setattr("multiprocessing.get_context", lambda method: context)
    trial, *_ = next(comparison(tmp_path, variants(tmp_path)).search.rounds())
    (there,) = in_processes(2)([trial.plain()])
    here = run_trial(trial.plain())
    numbers = ("key", "loss", "losses", "validations", "conditions")
    assert [there[name] for name in numbers] == [here[name] for name in numbers]


def test_a_rate_at_an_edge_is_extended_at_most_twice(tuned: CompareResult) -> None:
    assert [trial["pair"] for trial in tuned.variants["mha"].trials] == [1]  # the seed of tuning is not counted
    assert any("to tune learning rates" in remark for remark in tuned.remarks)
    for variant in tuned.variants.values():
        rates = list(variant.tried)
        assert 3 <= len(rates) <= 5
        assert all(higher / lower == pytest.approx(3, rel=0.02) for lower, higher in pairwise(rates))
        assert variant.tried[variant.learning_rate] == min(variant.tried.values())
        assert variant.at_edge == (variant.learning_rate in (rates[0], rates[-1]))
        assert len(rates) == 5 or not variant.at_edge


def test_a_shared_learning_rate_is_recorded(tmp_path: Path) -> None:
    result = comparison(tmp_path, variants(tmp_path), lr=0.003, seeds=1).run()
    assert "UNTUNED" in result.title and "UNTUNED" in result.table
    assert {variant.learning_rate for variant in result.variants.values()} == {0.003}


def test_copies_of_a_variant_get_no_verdict(tmp_path: Path) -> None:
    """An A/A comparison with real trainings."""
    copies = {f"copy {number}": run(tmp_path, {"max_steps": 16}) for number in range(5)}
    result = comparison(tmp_path, copies, lr=0.02, seeds=3).run()
    values = [value for variant in result.variants.values() for value in variant.values]
    assert len(set(values)) == 15
    assert not {difference.verdict for difference in result.differences.values()} & {"better", "worse"}


def test_an_injected_handicap_is_detected(tmp_path: Path) -> None:
    trainer = {"max_steps": 40, "batch_size": 8}
    plain, copy = (run(tmp_path, trainer) for _ in range(2))
    handicapped = run(tmp_path, trainer, dropout=0.5)
    result = comparison(tmp_path, {"plain": plain, "copy": copy, "dropout": handicapped}, lr=0.02, seeds=3).run()
    assert result.differences["dropout"].verdict == "worse"
    assert result.differences["copy"].verdict not in ("better", "worse")


def test_tokens_to_a_loss(tmp_path: Path) -> None:
    curve = [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert tokens_to(2.5, curve, 64) == 15 * 64
    assert tokens_to(3.5, curve, 64) == 10 * 64
    assert tokens_to(0.5, curve, 64) == float("inf")
    pair = {name: run(tmp_path, {"max_steps": 16}, attention=name) for name in ("mha", "mqa")}
    result = comparison(tmp_path, pair, budget="target_loss", target=2.6, lr=0.03, seeds=3).run()
    assert "speed-up" in result.table and result.title.startswith("Tokens to a loss of 2.6")


def test_a_target_that_is_never_reached_is_worse(tmp_path: Path) -> None:
    trainer = {"max_steps": 16}
    pair = {"plain": run(tmp_path, trainer), "slow": run(tmp_path, trainer, logit_scale=1e-6)}
    result = comparison(tmp_path, pair, budget="target_loss", target=2.5, lr=0.03, seeds=3).run()
    assert result.differences["slow"].verdict == "worse"


def test_from_python(tmp_path: Path) -> None:
    result = modular_gpt.compare(
        variants(tmp_path), budget="tokens", seeds=3, lr="shared", compares=str(tmp_path / "compares"), quiet=True
    )
    assert result.differences["mqa"].verdict in ("better", "worse", "equivalent", "cannot tell")
    assert "mqa" in result.table
    assert result.save_report().read_text().startswith("<!doctype html>")
    with pytest.raises(ConfigError, match="nothing to compare"):
        modular_gpt.compare({"mha": run(tmp_path)}, budget="tokens")
    with pytest.raises(ConfigError, match="no setting 'seed'; did you mean 'seeds'"):
        modular_gpt.compare(variants(tmp_path), budget="tokens", seed=3)


def test_another_text_is_refused_when_resuming(tmp_path: Path) -> None:
    first = comparison(tmp_path, variants(tmp_path))
    (tmp_path / "text.txt").write_text("a mat; the cat sat on it\n" * 300)
    from modular_gpt.comparison.trial import _text_of

    _text_of.cache_clear()
    with pytest.raises(ConfigError, match="the corpus is not the one of the finished trials"):
        Comparison.resumed(str(first.directory))


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no comparison"):
        Comparison.resumed(str(tmp_path))


def test_two_processes_cannot_run_the_same_comparison(tmp_path: Path) -> None:
    first = comparison(tmp_path, variants(tmp_path))
    with first._locked(), pytest.raises(ConfigError, match="another process runs the comparison"):
        Comparison.resumed(str(first.directory)).run()


def test_a_result_written_by_a_launcher_is_reused(tmp_path: Path) -> None:
    from modular_gpt.comparison.journal import leave

    first = comparison(tmp_path, variants(tmp_path), seeds=1)
    (trials,) = first.search.rounds()
    leave(first.directory, run_trial(trials[0].plain()))
    done: list[str] = []
    Comparison.resumed(str(first.directory), say=lambda text: None).run(counting(done))
    assert done == [trials[1].key]
    assert not list(first.directory.glob("trial-*"))


@pytest.mark.parametrize(
    ("shift", "required", "satisfied"),
    [(-0.3, "better", True), (0.3, "better", False), (0.0, "better", False), (0.0, "equivalent", True),
     (0.3, "not_worse", False), (0.0, "not_worse", True), (0.3, None, True)],
)  # fmt: skip
def test_require(shift: float, required: str | None, satisfied: bool, tmp_path: Path) -> None:
    base = [2.0, 2.001, 1.999, 2.002, 1.998]
    result = invented(tmp_path, {"base": base, "other": [loss + shift for loss in reversed(base)]})
    assert result.satisfies(required) is satisfied
