"""The Dataset and DataLoader for notebooks."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data import Corpus, SlidingWindowDataset, build_tokenizer, make_dataloader, prepare

TOKENS = np.arange(300, dtype=np.int32)


@given(count=st.integers(2, 60), length=st.integers(1, 12), stride=st.integers(1, 15))
def test_windows_equal_those_of_a_plain_loop(count: int, length: int, stride: int) -> None:
    ids = list(range(count))
    expected = [(ids[i : i + length], ids[i + 1 : i + length + 1]) for i in range(0, count - length, stride)]
    if not expected:
        with pytest.raises(DataError, match="needs"):
            SlidingWindowDataset(ids, None, length, stride)
        return
    dataset = SlidingWindowDataset(ids, None, length, stride)
    assert [(x.tolist(), y.tolist()) for x, y in (dataset[i] for i in range(len(dataset)))] == expected
    assert torch.equal(dataset[-1][0], dataset[len(dataset) - 1][0])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_text_and_a_tokenizer() -> None:
    text = "In the heart of the city stood the old library"
    dataset = SlidingWindowDataset(text, build_tokenizer("byte"), context_length=4, stride=1)
    x, y = dataset[0]
    assert (bytes(x.tolist()), bytes(y.tolist())) == (b"In t", b"n th")
    assert x.dtype == torch.int64 and len(dataset) == len(text) - 4


def test_windows_are_adjacent_without_a_stride() -> None:
    assert [int(x[0]) for x, _ in SlidingWindowDataset(TOKENS, context_length=100)] == [0, 100]


def test_batches() -> None:
    loader = make_dataloader(TOKENS, context_length=10, batch_size=4, shuffle=False)
    batches = list(loader)
    assert len(batches) == len(loader) == 29 // 4
    x, y = batches[0]
    assert x.shape == y.shape == (4, 10) and x[:, 0].tolist() == [0, 10, 20, 30] and torch.equal(y, x + 1)
    whole = list(make_dataloader(TOKENS, context_length=10, batch_size=4, shuffle=False, drop_last=False))
    assert len(whole) == 8 and len(whole[-1][0]) == 1


def order(**settings: int) -> list[list[int]]:
    """First tokens of all windows, for two epochs."""
    loader = make_dataloader(TOKENS, context_length=10, batch_size=4, drop_last=False, **settings)
    return [[int(first) for x, _ in loader for first in x[:, 0]] for _ in range(2)]


def test_the_order_depends_on_the_seed_only() -> None:
    torch.manual_seed(1)
    one = order(seed=3)
    torch.manual_seed(2)
    assert order(seed=3) == one
    assert order(seed=4) != one
    assert one[0] != one[1] and sorted(one[0]) == sorted(one[1]) == list(range(0, 290, 10))


def test_workers_do_not_change_the_batches() -> None:
    assert order(seed=3, num_workers=2) == order(seed=3)


def test_prepared_tokens_stay_on_disk(play: Corpus) -> None:
    """Spawned workers receive the path instead of the tokens."""
    split = prepare(play, build_tokenizer("byte")).train
    dataset = SlidingWindowDataset(split, context_length=16)
    first = dataset[0][0]
    content = pickle.dumps(dataset)
    assert len(content) < 2000 < split.count
    assert torch.equal(pickle.loads(content)[0][0], first)


def test_mistakes_get_one_sentence() -> None:
    cases = [
        (lambda: make_dataloader("some text"), "a text needs a tokenizer, such as build_tokenizer('byte')"),
        (lambda: make_dataloader(TOKENS, context_length=0), "windows.context_length must be above 0, got 0"),
        (lambda: make_dataloader(TOKENS, stride=0), "windows.stride must be above 0, got 0"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == message
    with pytest.raises(DataError) as short:
        make_dataloader("abc", build_tokenizer("byte"), context_length=3)
    assert str(short.value) == (
        "the text has 3 tokens, but a context_length of 3 needs 4: give it more text or take context_length=2"
    )


def test_an_empty_text_gets_one_sentence() -> None:
    with pytest.raises(DataError, match="the text is empty: give a text of more than context_length tokens"):
        make_dataloader("", build_tokenizer("byte"))
    for empty in ([], np.array([])):
        with pytest.raises(DataError, match="the text has 0 tokens, but a context_length of 256 needs 257"):
            make_dataloader(empty)
