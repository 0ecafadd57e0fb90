"""Batches are a pure function of the step; all windows are visited; every target is counted once."""

import hashlib
import pickle
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import BatchSource, Corpus, TokenSplit, build_tokenizer, prepare, sequential
from modular_gpt.data.batches import MODES
from modular_gpt.data.shuffle import key_of, permuted

TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def split(play: Corpus) -> TokenSplit:
    return prepare(play, build_tokenizer("byte")).train


def keys(count: int, *numbers: int) -> np.ndarray:
    return np.full(count, key_of(*numbers))


class TestPermutation:
    """A computed pseudorandom permutation."""

    @given(size=st.integers(1, 3000), seed=st.integers(-(2**70), 2**70))
    def test_it_is_a_bijection(self, size: int, seed: int) -> None:
        out = permuted(np.arange(size), size, keys(size, seed))
        assert sorted(out.tolist()) == list(range(size))

    def test_large_positions(self) -> None:
        size = 10**15 + 7
        positions = np.array([0, 1, 2, size // 2, size - 1])
        out = permuted(positions, size, keys(5, 3))
        assert len(set(out.tolist())) == 5 and out.min() >= 0 and out.max() < size

    def test_it_looks_random(self) -> None:
        """Mean and deviation of four statistics equal those of a uniform permutation within five standard errors."""
        size, shuffles = 500, 400
        out = np.stack([permuted(np.arange(size), size, keys(size, 1, shuffle)) for shuffle in range(shuffles)])
        fixed = (out == np.arange(size)).sum(1)
        assert abs(fixed.mean() - 1) < 5 / shuffles**0.5 and abs(fixed.var() - 1) < 0.6
        ascents = (np.diff(out) > 0).sum(1)
        assert abs(ascents.mean() - (size - 1) / 2) < 5 * ((size + 1) / 12 / shuffles) ** 0.5
        hits = np.zeros((10, 10))
        np.add.at(hits, (np.tile(np.arange(size) // 50, shuffles), out.ravel() // 50), 1)
        expected = size * shuffles / 100
        assert abs(((hits - expected) ** 2 / expected).sum() - 81) < 5 * (2 * 81) ** 0.5
        between = np.array([np.corrcoef(a, b)[0, 1] for a, b in pairwise(out)])
        assert abs(between.mean()) < 5 / (size * shuffles) ** 0.5

    def test_keys_depend_on_each_number_and_their_order(self) -> None:
        numbers = [(), (0,), (1,), (-1,), (0, 0), (0, 1), (1, 0), (2**64 - 2,), (1, 2, 3), (3, 2, 1)]
        assert len({int(key_of(*some)) for some in numbers}) == len(numbers)


@pytest.mark.parametrize("mode", MODES)
class TestPurity:
    """Batches depend only on tokens, seed and step."""

    def test_inputs_and_targets(self, mode: str) -> None:
        x, y = BatchSource(TOKENS, 7, 5, seed=1, mode=mode).batch(3)
        assert x.shape == y.shape == (5, 7) and x.dtype == y.dtype == torch.int64
        assert x.is_contiguous() and y.is_contiguous()
        assert torch.equal(y, x + 1)  # the tokens are consecutive integers
        assert torch.equal(x, x[:, :1] + torch.arange(7))

    def test_batches_do_not_depend_on_earlier_batches(self, mode: str, split: TokenSplit) -> None:
        def source() -> BatchSource:
            return BatchSource(split, 16, 8, seed=3, mode=mode)

        in_order = [batch for step in range(20) for batch in source().batch(step)]
        one = source()
        again = {}
        for step in np.random.permutation(20).tolist():
            torch.rand(step)  # other users of the global generators
            np.random.rand(step)
            again[step] = one.batch(step)
        assert all(
            torch.equal(a, b) for a, b in zip(in_order, sum((again[step] for step in range(20)), ()), strict=True)
        )
        copy = pickle.loads(pickle.dumps(one))
        assert torch.equal(copy.batch(7)[0], again[7][0])

    def test_global_generators_are_not_used(self, mode: str) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        BatchSource(TOKENS, 8, 4, seed=0, mode=mode).batch(0)
        assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()

    @pytest.mark.parametrize("world", [1, 2, 3, 4, 12])
    def test_ranks_share_one_global_batch(self, mode: str, world: int) -> None:
        source = BatchSource(TOKENS, 8, 12, seed=0, mode=mode)
        for step in (0, 5, 10**9):
            whole = source.batch(step)
            batches = [source.batch(step, rank, world) for rank in range(world)]
            for number in (0, 1):
                assert torch.equal(torch.cat([batch[number] for batch in batches]), whole[number])

    def test_seeds_and_steps_differ(self, mode: str) -> None:
        starts = [
            tuple(BatchSource(TOKENS, 4, 16, seed, mode).starts(step)) for seed in (0, 1, -1) for step in (0, 1, 2)
        ]
        assert len(set(starts)) == 9

    def test_a_batch_owns_its_memory(self, mode: str, split: TokenSplit) -> None:
        source = BatchSource(split, 16, 4, seed=0, mode=mode)
        x, _ = source.batch(0)
        kept = x.clone()
        x.zero_()
        assert torch.equal(source.batch(0)[0], kept)

    def test_tokens_of_any_type(self, mode: str) -> None:
        forms = [TOKENS, TOKENS.tolist(), torch.from_numpy(TOKENS.astype(np.int32)), tuple(TOKENS.tolist())]
        batches = [BatchSource(form, 8, 4, seed=5, mode=mode).batch(2)[0] for form in forms]
        assert all(torch.equal(batch, batches[0]) for batch in batches)

    def test_the_order_is_equal_on_all_machines_and_versions(self, mode: str) -> None:
        """Fixed values, since a run that is resumed elsewhere must continue with the same samples.

        The numbers come from the same formulas in plain Python integers.
        """
        expected = {
            "random": [430676, 164152, 489271, 110603, 554755, 793198],
            "epoch": [323200, 982144, 696832, 567040, 671232, 308480],
        }
        starts = BatchSource(np.zeros(10**6, np.uint8), 128, 6, seed=1337, mode=mode).starts(12345)
        assert starts.tolist() == expected[mode]


@given(
    count=st.integers(2, 200),
    block=st.integers(1, 20),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 2**32),
    resumed=st.integers(0, 10),
)
def test_each_window_once_an_epoch(count: int, block: int, batch_size: int, seed: int, resumed: int) -> None:
    """Also if an epoch ends within a batch, if a batch holds several epochs, and after resuming."""
    if count <= block:
        return
    tokens = np.arange(count, dtype=np.uint16)
    windows = (count - 1) // block
    steps = -(-3 * windows // batch_size)
    source = BatchSource(tokens, block, batch_size, seed, mode="epoch")
    first = [start for step in range(min(resumed, steps)) for start in source.batch(step)[0][:, 0].tolist()]
    source = BatchSource(tokens, block, batch_size, seed, mode="epoch")
    rest = [start for step in range(min(resumed, steps), steps) for start in source.batch(step)[0][:, 0].tolist()]
    starts = first + rest
    for epoch in range(3):
        assert sorted(starts[epoch * windows : (epoch + 1) * windows]) == [i * block for i in range(windows)]


def test_epochs_are_shuffled_differently() -> None:
    source = BatchSource(TOKENS, 9, 111, seed=0, mode="epoch")  # 111 windows
    orders = [tuple(source.starts(epoch)) for epoch in range(5)]
    assert len(set(orders)) == 5 and all(order != tuple(sorted(order)) for order in orders)


def test_starts_of_random_windows_are_uniform() -> None:
    source = BatchSource(np.zeros(107, np.uint8), 8, 1000, seed=0)  # 99 starts
    counts = Counter(start for step in range(20) for start in source.starts(step).tolist())
    assert sorted(counts) == list(range(99))
    expected = 20_000 / 99
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 98 + 5 * (2 * 98) ** 0.5


@pytest.mark.parametrize("mode", MODES)
def test_one_window_is_enough(mode: str) -> None:
    x, y = BatchSource(np.arange(9), 8, 2, seed=0, mode=mode).batch(0)
    assert x.tolist() == [list(range(8))] * 2 and y.tolist() == [list(range(1, 9))] * 2


def test_only_the_windows_are_read(tmp_path: Path) -> None:
    """A sparse file of 1 GB: reading it whole would take seconds and 1 GB of memory."""
    path = tmp_path / "train.bin"
    count = 2**29
    with path.open("wb") as file:
        file.truncate(2 * count)
        file.seek(2 * (count - 1))
        file.write(b"\x07\x00")
    split = TokenSplit("train", path, np.dtype("<u2"), count, count, "", None)
    tracemalloc.start()
    try:
        for mode in MODES:
            x, _ = BatchSource(split, 1024, 64, seed=0, mode=mode).batch(10**6)
            assert x.shape == (64, 1024)
        assert tracemalloc.get_traced_memory()[1] < 20 * x.nbytes
    finally:
        tracemalloc.stop()


class TestSequential:
    """One pass over the whole text."""

    @given(count=st.integers(2, 200), block=st.integers(1, 12), share=st.integers(1, 4), world=st.integers(1, 3))
    def test_every_target_once(self, count: int, block: int, share: int, world: int) -> None:
        tokens = np.arange(count) + 1000
        per_rank = [list(sequential(tokens, block, share * world, rank, world)) for rank in range(world)]
        assert len({len(batches) for batches in per_rank}) == 1  # all ranks have equally many batches
        seen = []
        for step in zip(*per_rank, strict=True):
            for x, y in step:
                assert x.shape == y.shape == (share, block) and x.dtype == y.dtype == torch.int64
                kept = y != IGNORED
                assert torch.equal(y[kept], x[kept] + 1)
                seen += y[kept].tolist()
        assert seen == tokens[1:].tolist()

    def test_windows_are_adjacent(self) -> None:
        batches = list(sequential(np.arange(12), 4, 2))
        assert [x.tolist() for x, _ in batches] == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 0], [0, 0, 0, 0]]]
        assert batches[1][1].tolist() == [[9, 10, 11, -100], [-100] * 4]

    def test_the_mean_over_the_split_is_exact(self, split: TokenSplit) -> None:
        """Compared with one pass over the text of a model whose context is one token."""
        logits = torch.randn(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ids = torch.from_numpy(np.asarray(split.array).astype(np.int64))
        expected = torch.nn.functional.cross_entropy(logits[ids[:-1]], ids[1:])
        total = torch.zeros((), dtype=torch.float64)
        count = 0
        for x, y in sequential(split, 37, 5):
            total += torch.nn.functional.cross_entropy(logits[x].flatten(0, 1), y.flatten(), reduction="sum")
            count += int((y != IGNORED).sum())
        assert count == split.count - 1
        torch.testing.assert_close(total / count, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("count", "block", "message"),
    [
        (8, 8, "the text has 8 tokens, but a context_length of 8 needs 9: give it more text or take context_length=7"),
        (1, 8, "the text has 1 tokens, but a context_length of 8 needs 9: give it more text"),
        (0, 8, "the text has 0 tokens, but a context_length of 8 needs 9: give it more text"),
    ],
)
def test_too_short(count: int, block: int, message: str) -> None:
    with pytest.raises(DataError) as caught:
        BatchSource(np.arange(count), block, 2, seed=0)
    assert str(caught.value) == message


def test_wrong_settings_get_one_sentence() -> None:
    source = BatchSource(TOKENS, 8, 6, seed=0)
    cases = [
        (lambda: BatchSource(TOKENS, 8, 4, 0, mode="shuffled"), "mode: no choice 'shuffled'; there are: epoch, random"),
        (lambda: BatchSource(TOKENS, 0, 4, 0), "batches.context_length must be above 0, got 0"),
        (lambda: BatchSource(TOKENS, 8, -1, 0), "batches.batch_size must be above 0, got -1"),
        (lambda: source.batch(0, 0, 4), "batch_size 6 must be a multiple of the 4 processes"),
        (lambda: next(sequential(TOKENS, 8, 5, 0, 2)), "batch_size 5 must be a multiple of the 2 processes"),
    ]
    for call, message in cases:
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == message
    for wrong in (np.zeros((2, 9), int), np.zeros(9), ["a", "b"]):
        with pytest.raises(DataError, match=r"tokens must be one row of whole numbers, got shape"):
            BatchSource(wrong, 4, 1, 0)


def test_the_sample_hash_of_a_run_is_repeatable(split: TokenSplit) -> None:
    def digest() -> str:
        source = BatchSource(split, 32, 4, seed=1)
        return hashlib.sha256(b"".join(source.batch(step)[0].numpy().tobytes() for step in range(50))).hexdigest()

    assert digest() == digest()
