"""Synthetic tasks: rows of random ids in which some tokens have a target that follows from the row.

A row is a function of the seed, the stream and the number of its sample, so that it depends neither on the number of
processes nor on resumes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from modular_gpt.core.targets import IGNORED
from modular_gpt.data.shuffle import GOLDEN, key_of, mix

FILLER = 0  # the id between questions, and the separator of a copy


class Draws:
    """Random numbers of n samples, each from a separate stream, of which every draw takes the next numbers."""

    def __init__(self, samples: np.ndarray, seed: int, stream: int) -> None:
        """samples: (n,) numbers of samples; stream: separates training from validation for equal seeds"""
        self._keys = mix(mix(samples.astype(np.uint64)) ^ key_of(seed, stream))
        self._drawn = 0

    def bits(self, count: int) -> np.ndarray:
        """Random 64-bit integers, (n, count)."""
        counters = np.arange(self._drawn, self._drawn + count, dtype=np.uint64) * np.uint64(GOLDEN)
        self._drawn += count
        return mix(self._keys[:, None] + counters)

    def below(self, high: int, count: int) -> np.ndarray:
        """Random integers from 0 to high - 1, (n, count)."""
        return (self.bits(count) % np.uint64(high)).astype(np.int64)

    def distinct(self, high: int, count: int) -> np.ndarray:
        """Distinct random integers from 0 to high - 1, (n, count)."""
        return np.argsort(self.bits(high), axis=1, kind="stable")[:, :count]


@dataclass(frozen=True)
class TaskSizes:
    """Sizes of a task.

    vocab_size: number of ids; pairs: number of key-value pairs in a row; lag: distance of the target
    """

    vocab_size: int
    pairs: int
    lag: int


Rows = tuple[np.ndarray, np.ndarray]  # inputs and targets, each (n, T)


def mqar(draws: Draws, block: int, sizes: TaskSizes) -> Rows:
    """Key-value pairs, then the keys again at random places, where the target of each is its value.

    Multi-query associative recall, https://arxiv.org/abs/2312.04927, with its questions spread evenly.
    """
    pairs, half = sizes.pairs, sizes.vocab_size // 2
    keys, values = draws.distinct(half - 1, pairs) + 1, draws.distinct(half, pairs) + half
    places = 2 * pairs + 2 * draws.distinct((block - 2 * pairs) // 2, pairs)
    x, y = _empty(keys, block)
    x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2] = keys, values
    np.put_along_axis(x, places, keys, axis=1)
    np.put_along_axis(y, places, values, axis=1)
    return x, y


def lag(draws: Draws, block: int, sizes: TaskSizes) -> Rows:
    """Random ids, of which each target is the id lag - 1 places before the token that predicts it.

    L layers of sliding windows of w keys reach L (w - 1) places back, so that they solve it exactly if that is at least
    lag - 1.
    """
    x = draws.below(sizes.vocab_size, block)
    y = np.full_like(x, IGNORED)
    y[:, sizes.lag - 1 :] = x[:, : block - sizes.lag + 1]
    return x, y


def copy(draws: Draws, block: int, sizes: TaskSizes) -> Rows:
    """Random ids, a separator, and the same ids again, each of which is a target."""
    count = block // 2
    ids = draws.below(sizes.vocab_size - 1, count) + 1
    x, y = _empty(ids, block)
    x[:, :count], x[:, count + 1 : 2 * count] = ids, ids[:, :-1]
    y[:, count : 2 * count] = ids
    return x, y


def needle(draws: Draws, block: int, sizes: TaskSizes) -> Rows:
    """Key-value pairs hidden in noise; the last token is one of the keys, and its target is the value of that key.

    The first quarter of the vocabulary has the keys, the second one noise, and the last two have the values.
    """
    pairs, quarter = sizes.pairs, sizes.vocab_size // 4
    keys = draws.distinct(quarter, pairs)
    values = draws.below(sizes.vocab_size - 2 * quarter, pairs) + 2 * quarter
    places = 2 * draws.distinct((block - 1) // 2, pairs)
    asked = draws.below(pairs, 1)
    x = draws.below(quarter, block) + quarter
    y = np.full_like(x, IGNORED)
    np.put_along_axis(x, places, keys, axis=1)
    np.put_along_axis(x, places + 1, values, axis=1)
    x[:, -1:] = np.take_along_axis(keys, asked, axis=1)
    y[:, -1:] = np.take_along_axis(values, asked, axis=1)
    return x, y


def _empty(rows: np.ndarray, block: int) -> Rows:
    """Inputs that are all ``FILLER``, and targets that are all ``IGNORED``."""
    shape = (len(rows), block)
    return np.full(shape, FILLER, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)


@dataclass(frozen=True)
class Task:
    """A synthetic task.

    rows: generates the inputs and targets of samples
    shortest: the smallest T that it needs; smallest: the smallest vocabulary
    """

    rows: Callable[[Draws, int, TaskSizes], Rows]
    shortest: Callable[[TaskSizes], int]
    smallest: Callable[[TaskSizes], int]


TASKS: dict[str, Task] = {
    "mqar": Task(mqar, lambda sizes: 4 * sizes.pairs, lambda sizes: 2 * sizes.pairs + 2),
    "lag": Task(lag, lambda sizes: sizes.lag, lambda sizes: 2),
    "copy": Task(copy, lambda sizes: 2, lambda sizes: 2),
    "needle": Task(needle, lambda sizes: 2 * sizes.pairs + 1, lambda sizes: 4 * sizes.pairs),
}
