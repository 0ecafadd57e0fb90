"""Mixtures: exact shares of the sources, unchanged rows of each source, and purity in the step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.registry import decode, encode
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import PreparedData, build_corpus, build_tokenizer
from modular_gpt.data.prepared_mixture import CYCLE, PreparedMixture, choose, places_of
from modular_gpt.training import RunConfig, train
from modular_gpt.training.metrics import read_metrics
from tests.training.small import stop_after

BLOCK = 8


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Paths of three texts with disjoint alphabets."""
    for name, letters in (("a", "abc "), ("b", "def "), ("c", "ghi ")):
        generator = np.random.default_rng(ord(name))
        (tmp_path / f"{name}.txt").write_text("".join(generator.choice(list(letters), 500)))
    return {name: str(tmp_path / f"{name}.txt") for name in "abc"}


def sources(texts: dict[str, str], **settings: Any) -> dict[str, Any]:
    return {
        "a": {"path": texts["a"], "weight": 6, **settings},
        "b": {"path": texts["b"], "weight": 3.0, "val_fraction": 0.3},
        "c": texts["c"],
    }


def prepared(given: Any) -> PreparedData:
    return build_corpus({"name": "mixture", "sources": given}).prepare(build_tokenizer("byte"))


def letters(ids: torch.Tensor) -> str:
    """The source of a row, by its letters."""
    text = set(bytes(ids.tolist()).decode())
    return next(name for name, chars in (("a", "abc"), ("b", "def"), ("c", "ghi")) if text & set(chars))


def test_each_cycle_has_exact_shares_in_a_different_order() -> None:
    places = (600, 300, 100)
    chosen, numbers = choose(np.arange(3 * CYCLE), places, seed=1)
    for cycle in range(3):
        assert np.bincount(chosen[cycle * CYCLE : (cycle + 1) * CYCLE]).tolist() == list(places)
    assert not np.array_equal(chosen[:CYCLE], chosen[CYCLE : 2 * CYCLE])
    assert not np.array_equal(chosen[:CYCLE], choose(np.arange(CYCLE), places, seed=2)[0])
    for source in range(3):
        assert numbers[chosen == source].tolist() == list(range(3 * places[source]))
    odd = np.array([2999, 17, 1500, 17])
    assert [found[[2999, 17, 1500, 17]].tolist() for found in (chosen, numbers)] == [
        found.tolist() for found in choose(odd, places, seed=1)
    ]


def test_weights_become_counts_per_cycle() -> None:
    assert places_of({"a": 6, "b": 3.0, "c": 1}) == {"a": 600, "b": 300, "c": 100}
    assert places_of({"a": 1, "b": 1, "c": 1}) == {"a": 334, "b": 333, "c": 333}
    with pytest.raises(ConfigError, match=r"data.sources.b.weight=1 is less than one row of 1,000: raise it"):
        places_of({"a": 5000, "b": 1})


@pytest.mark.parametrize("order", ["random", "epoch"])
def test_rows_equal_those_of_each_source_alone(order: str, texts: dict[str, str]) -> None:
    mixture = prepared(sources(texts))
    assert isinstance(mixture, PreparedMixture)
    alone = {source.name: source.data.batches(BLOCK, 1, 3, order) for source in mixture.sources}
    rows = [row for step in range(40) for row in zip(*mixture.batches(BLOCK, 5, 3, order).batch(step), strict=True)]
    count = dict.fromkeys("abc", 0)
    for ids, targets in rows:
        name = letters(ids)
        expected = alone[name].batch(count[name])
        assert torch.equal(ids[None], expected[0]) and torch.equal(targets[None], expected[1])
        count[name] += 1
    assert count["a"] > count["b"] > count["c"] > 5


def test_processes_and_batch_sizes_divide_the_same_rows(texts: dict[str, str]) -> None:
    mixture = prepared(sources(texts))
    whole = mixture.batches(BLOCK, 12, 0, "random").batch(1)
    for world in (2, 3):
        shares = [mixture.batches(BLOCK, 12, 0, "random").batch(1, rank, world) for rank in range(world)]
        assert all(
            torch.equal(torch.cat(tensors), one) for tensors, one in zip(zip(*shares, strict=True), whole, strict=True)
        )
    halves = [mixture.batches(BLOCK, 6, 0, "random").batch(step)[0] for step in (2, 3)]
    assert torch.equal(torch.cat(halves), whole[0])
    with pytest.raises(ConfigError, match="must be a multiple of the 5 processes"):
        mixture.batches(BLOCK, 12, 0, "random").batch(0, 0, 5)


@pytest.mark.parametrize("windows", [0, 7, 16])
def test_an_evaluation_does_not_depend_on_rows_and_processes(windows: int, texts: dict[str, str]) -> None:
    mixture = prepared(sources(texts))

    def counted(rows: int, world: int) -> list[tuple[list[int], list[int]]]:
        shares = [mixture.evaluation(BLOCK, rows, windows, rank, world) for rank in range(world)]
        batches = [batch for group in zip(*shares, strict=True) for batch in group]
        assert all(batch[0].shape == (rows // world, BLOCK) for batch in batches)
        pairs = [(ids.tolist(), targets.tolist()) for batch in batches for ids, targets in zip(*batch, strict=True)]
        return [pair for pair in pairs if any(target != IGNORED for target in pair[1])]

    assert counted(1, 1) == counted(4, 1) == counted(6, 2)
    assert len(counted(4, 1)) == (windows or mixture.evaluation_windows(BLOCK))


def test_the_whole_evaluation_has_each_target_once(texts: dict[str, str]) -> None:
    mixture = prepared(sources(texts))
    targets = sum(int((batch[1] != IGNORED).sum()) for batch in mixture.evaluation(BLOCK, 4, 0))
    assert targets == (50 - 1) + (150 - 1) + (50 - 1)


def test_documents_are_separated_as_set_by_each_source(texts: dict[str, str]) -> None:
    mixture = prepared(sources(texts, documents=True))
    assert mixture.separates_documents
    for batch in (mixture.batches(BLOCK, 20, 0, "random").batch(0), next(mixture.evaluation(BLOCK, 20, 20))):
        ids, _, documents = batch
        assert documents.shape == ids.shape
        assert {letters(row) for row, number in zip(ids, documents, strict=True) if not number.any()} == {"b", "c"}


def test_the_summary_lists_the_share_of_each_source(
    texts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(tmp_path, sources(texts), max_steps=1))
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Data"))
    assert [line.strip() for line in lines[start : start + 4]] == [
        "Data      3 sources, rows of each in proportion to its weight",
        "60.0% a: 450 tokens to train on, 50 to validate",
        "30.0% b: 350 tokens to train on, 150 to validate",
        "10.0% c: 450 tokens to train on, 50 to validate",
    ]


def config(folder: Path, given: Any, **trainer: Any) -> RunConfig:
    quick = {"sample_tokens": 0, "eval_interval": 3, "eval_batches": 1, "device": "cpu", "compile": False, "threads": 1}
    return RunConfig(
        model={"d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": BLOCK},
        data={"name": "mixture", "sources": given},
        trainer={**quick, "log_interval": 1, **trainer},
        runs=str(folder / "runs"),
    )


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(
    texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(config(tmp_path / "whole", sources(texts), max_steps=6), quiet=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        stopped = train(config(tmp_path, sources(texts), max_steps=6), quiet=True)
    assert stopped.outcome is None
    again = config(tmp_path, sources(texts), max_steps=6)
    again.resume = str(stopped.directory)
    train(again, quiet=True)
    losses = [
        [entry[name] for entry in read_metrics(run.directory) for name in ("loss", "validation_loss") if name in entry]
        for run in (whole, stopped)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    again.data = decode(
        "data", {"name": "mixture", "sources": {**sources(texts), "c": {"path": texts["c"], "weight": 2}}}
    )
    again.trainer.max_steps = 8
    with pytest.raises(DataError, match="the corpus is not the one of the checkpoint"):
        train(again, quiet=True)


def test_sources_in_each_form(texts: dict[str, str]) -> None:
    a, b = texts["a"], texts["b"]
    forms: list[Any] = [
        {"a": a, "b": {"path": b, "weight": 1}},
        {"a": {"path": a}, "b": {"path": b}},
        {"a": {"name": "text", "path": a, "weight": 1}, "b": Path(b)},
    ]
    found = [decode("data", {"name": "mixture", "sources": form}) for form in forms]
    assert found[0] == found[1] == found[2] == decode("data", encode(found[0]))
    named = decode("data", {"name": "mixture", "sources": {"code": "python_stdlib", "text": a}})
    assert named.sources["code"] == {"name": "python_stdlib", "weight": 1}  # type: ignore[attr-defined]


def test_a_tokenizer_is_trained_on_all_sources(texts: dict[str, str]) -> None:
    corpus = build_corpus({"name": "mixture", "sources": texts})
    assert build_tokenizer("char", corpus).vocab_size == 10
    assert corpus.characters("train") == 3 * 450


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "data=mixture needs data.sources, such as data.sources={a: {path: a.txt, weight: 2}, b: b.txt}"),
        (3, "data.sources must be a mapping, got 3"),
        (["a.txt", "a.txt"], "data.sources must be a mapping, got ['a.txt', 'a.txt']"),
        ({"a": 3}, "data.sources.a must be settings such as {path: a.txt, weight: 2}, the name of a corpus or a path"),
        ({"a": {"path": "x", "weight": 0}}, "data.sources.a.weight must be a number above 0, got 0"),
        ({"a": {"path": "x", "weight": "2"}}, "data.sources.a.weight must be a number above 0, got '2'"),
        ({"a": {"path": "x", "weigth": 2}}, "data: no setting 'weigth'"),
        ({"a": {"name": "tex", "path": "x"}}, "no data 'tex'; did you mean 'text'?"),
    ],
)
def test_mistakes_get_one_sentence(given: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_corpus({"name": "mixture", "sources": given})
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_a_source_that_is_too_short(texts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("0123456789")
    mixture = prepared({"a": texts["a"], "b": str(tmp_path / "short.txt")})
    with pytest.raises(DataError, match="the validation text has 1 tokens, but a context_length of 8 needs 9"):
        mixture.check_evaluation(BLOCK, 8)
