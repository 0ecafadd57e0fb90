"""Synthetic tasks: targets follow from their row, rows depend only on seed and index, mistakes get one sentence."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modular_gpt import ConfigError, DataError
from modular_gpt.data import build_corpus, build_tokenizer
from modular_gpt.data.corpora.synthetic import SyntheticData
from modular_gpt.data.synthetic_tasks import TASKS, Draws
from modular_gpt.training import RunConfig

T = 40


def data(task: str, **settings: Any) -> SyntheticData:
    corpus = build_corpus({"name": "synthetic", "task": task, "vocab_size": 48, "pairs": 5, **settings})
    prepared = corpus.prepare(build_tokenizer({"name": "ids", "vocab_size": 48}))
    assert isinstance(prepared, SyntheticData)
    return prepared


def rows(task: str, count: int = 64, block: int = T, **settings: Any) -> tuple[list[list[int]], list[list[int]]]:
    x, y = data(task, **settings).batches(block, count, 0, "random").batch(0)
    assert x.shape == y.shape == (count, block) and x.dtype == y.dtype == torch.int64
    assert x.min() >= 0 and max(int(x.max()), int(y.max())) < 48
    return x.tolist(), y.tolist()


def counted(y: list[int]) -> list[int]:
    return [place for place, target in enumerate(y) if target != -100]


def test_mqar_asks_for_the_value_of_each_key_once() -> None:
    places = []
    for x, y in zip(*rows("mqar"), strict=True):
        values = {x[place]: x[place + 1] for place in range(0, 10, 2)}
        assert len(values) == len(set(values.values())) == 5
        assert {x[place]: y[place] for place in counted(y)} == values
        assert all(x[place] == 0 for place in range(10, T) if y[place] == -100)
        places += counted(y)
    assert set(places) == set(range(10, T, 2))  # every position is used


def test_lag_repeats_the_id_at_the_fixed_distance() -> None:
    for x, y in zip(*rows("lag", lag=7), strict=True):
        text = [*x, y[-1]]  # only the last target is not an input
        assert counted(y) == list(range(6, T))
        assert all(y[place] == text[place + 1 - 7] for place in counted(y))


def test_copy_repeats_the_first_half() -> None:
    for x, y in zip(*rows("copy"), strict=True):
        ids = x[: T // 2]
        assert 0 not in ids and x[T // 2] == 0 and x[T // 2 + 1 :] == ids[:-1]
        assert y[T // 2 :] == ids and counted(y) == list(range(T // 2, T))


def test_needle_asks_for_one_hidden_value() -> None:
    places = set()
    for x, y in zip(*rows("needle", count=400), strict=True):
        assert counted(y) == [T - 1]
        keys = [place for place in range(T - 1) if x[place] < 12]
        (place,) = (place for place in keys if x[place] == x[-1])
        assert len(keys) == 5 and y[-1] == x[place + 1] >= 24
        places.add(place)
    assert places == set(range(0, T - 2, 2))


@pytest.mark.parametrize("task", TASKS)
def test_rows_are_a_function_of_seed_and_step(task: str) -> None:
    prepared = data(task)
    source, other = prepared.batches(T, 8, 3, "random"), prepared.batches(T, 8, 4, "random")
    before = source.batch(5)
    source.batch(0)
    assert equal(source.batch(5), before) and equal(prepared.batches(T, 8, 3, "random").batch(5), before)
    assert not equal(source.batch(6), before) and not equal(other.batch(5), before)
    for world in (1, 2, 4):
        shards = [source.batch(5, rank, world) for rank in range(world)]
        assert equal((torch.cat([x for x, _ in shards]), torch.cat([y for _, y in shards])), before)


@pytest.mark.parametrize("task", TASKS)
def test_validation_rows_do_not_depend_on_the_batch_size_and_are_not_trained_on(task: str) -> None:
    prepared = data(task, validation_samples=21)
    expected = counted_rows(prepared, 4, 0)
    assert len(expected) == 21 == prepared.evaluation_windows(T)
    assert counted_rows(prepared, 6, 0) == expected
    assert [row for rank in (0, 1) for row in counted_rows(prepared, 42, 0, rank, 2)] == expected
    assert counted_rows(prepared, 8, 5) == expected[:5]
    trained = {tuple(row) for step in range(40) for row in prepared.batches(T, 8, 0, "random").batch(step)[0].tolist()}
    assert not trained & {tuple(x) for x, _ in expected} or (task == "needle" and len(trained) == 320)


def counted_rows(prepared: SyntheticData, size: int, windows: int, rank: int = 0, world: int = 1) -> list[Any]:
    batches = list(prepared.evaluation(T, size, windows, rank, world))
    assert all(x.shape == (size // world, T) for x, _ in batches)
    return [
        (x, y)
        for xs, ys in batches
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True)
        if any(target != -100 for target in y)
    ]


def equal(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_samples_are_uniform_and_do_not_repeat() -> None:
    draws = Draws(np.arange(4000), 0, 0)
    first, second = draws.below(10, 5), draws.below(10, 5)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.03
    assert all(abs(float((first == value).mean()) - 0.1) < 0.01 for value in range(10))
    chosen = draws.distinct(6, 6)
    assert (np.sort(chosen, axis=1) == np.arange(6)).all()
    assert all(abs(float((chosen[:, 0] == value).mean()) - 1 / 6) < 0.02 for value in range(6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "mqra"}, r"data.task: .* mqar"),
        ({"pairs": 0}, "data.pairs must be above 0"),
        ({"pairs": 100, "vocab_size": 128}, "needs data.vocab_size=202 or more, got 128"),
        ({"task": "needle", "pairs": 33}, "needs data.vocab_size=132 or more"),
        ({"vocab_size": 2**20}, "data.vocab_size must be at most 65,536"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_corpus({"name": "synthetic", **settings})


def test_a_task_longer_than_the_context_is_refused() -> None:
    with pytest.raises(DataError, match="needs rows of 20 tokens, but the context_length is 16"):
        data("mqar").batches(16, 1, 0, "random")
    with pytest.raises(ConfigError, match=r"has no epochs: leave out trainer\.order=epoch"):
        data("lag").batches(T, 1, 0, "epoch")
    with pytest.raises(DataError, match="data=synthetic has ids and no text"):
        build_tokenizer("char", build_corpus("synthetic"))
    with pytest.raises(ConfigError, match="leave out tokenizer=char"):
        RunConfig(data="synthetic", tokenizer="char")
    with pytest.raises(ConfigError, match=r"data\.vocab_size=48, but the tokenizer has 256 ids"):
        build_corpus({"name": "synthetic", "vocab_size": 48}).prepare(build_tokenizer("byte"))


def test_the_settings_are_the_identity_of_the_data() -> None:
    one = data("mqar")
    one.check_identity(data("mqar").identity)
    with pytest.raises(DataError, match="the corpus is not the one of the checkpoint"):
        one.check_identity(data("mqar", pairs=6).identity)
    with pytest.raises(DataError, match="the tokenizer has 48 ids but the model only 40"):
        one.check_vocabulary(40)


def test_the_tokenizer_of_a_run_is_that_of_the_ids() -> None:
    config = RunConfig(data={"name": "synthetic", "vocab_size": 40})
    assert config.tokenizer == RunConfig.from_dict(config.to_dict()).tokenizer
    assert (config.tokenizer.name, config.tokenizer.vocab_size) == ("ids", 40)


def test_ids_as_text() -> None:
    tokenizer = build_tokenizer({"name": "ids", "vocab_size": 50})
    assert tokenizer.encode(" 7 49\n0 ") == [7, 49, 0] and tokenizer.decode([7, 49, 0]) == "7 49 0"
    stream = tokenizer.decode_stream()
    assert "".join([*(stream.push(i) for i in (7, 49, 0)), stream.flush()]) == "7 49 0"
    assert type(tokenizer).from_definition(tokenizer.definition()).fingerprint == tokenizer.fingerprint
    for text in ("7 50", "-1", "a", "²", "9" * 30):
        with pytest.raises(DataError, match="is no id: this text is made of numbers from 0 to 49"):
            tokenizer.encode(text)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size must be from 1 to"):
        build_tokenizer({"name": "ids", "vocab_size": 0})
