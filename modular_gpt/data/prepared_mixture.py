"""Mixtures: batches with rows of several sources in exact proportions, as a function of the step alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import ClassVar

import numpy as np
import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.targets import IGNORED
from modular_gpt.data.batches import check_share
from modular_gpt.data.prepared import Batch, Batches, PreparedData
from modular_gpt.data.shuffle import key_of, permuted

CYCLE = 1000  # number of rows in which each source has exactly its share
STREAM = 2  # stream of random numbers, other than those of the orders of ``BatchSource``


def places_of(weights: Mapping[str, float]) -> dict[str, int]:
    """The number of rows of each source in a ``CYCLE``: in proportion to the weights, by the largest remainders.

    Raises:
        ConfigError: a source would have no row.
    """
    total = sum(weights.values())
    exact = {name: weight / total * CYCLE for name, weight in weights.items()}
    places = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: places[name] - exact[name])
    for name in by_remainder[: CYCLE - sum(places.values())]:
        places[name] += 1
    for name, count in places.items():
        if not count:
            raise ConfigError(
                f"data.sources.{name}.weight={weights[name]:g} is less than one row of {CYCLE:,}: raise it, or"
                " leave the source out"
            )
    return places


@dataclass(frozen=True)
class Source:
    """A source of a mixture; places: number of its rows in each ``CYCLE``."""

    name: str
    places: int
    data: PreparedData


@lru_cache(maxsize=4)
def _cycle(places: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a cycle, its source, and the number of rows of that source before it in the cycle."""
    keys = np.full(CYCLE, key_of(seed, STREAM, number))
    chosen = np.repeat(np.arange(len(places)), places)[permuted(np.arange(CYCLE), CYCLE, keys)]
    before = np.zeros(CYCLE, dtype=np.int64)
    for source in range(len(places)):
        from_source = chosen == source
        before[from_source] = np.arange(int(from_source.sum()))
    return chosen, before


def choose(samples: np.ndarray, places: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each sample (n,) of a training, its source and the number of its row among the rows of that source."""
    cycles, positions = np.divmod(samples.astype(np.int64), CYCLE)
    chosen, numbers = np.empty_like(positions), np.empty_like(positions)
    for cycle in np.unique(cycles):
        in_cycle = cycles == cycle
        sources, before = _cycle(places, seed, int(cycle))
        chosen[in_cycle] = sources[positions[in_cycle]]
        numbers[in_cycle] = before[positions[in_cycle]] + int(cycle) * np.array(places)[chosen[in_cycle]]
    return chosen, numbers


class MixedBatches:
    """The rows of each step from several sources; row i of a source does not depend on the batch size."""

    def __init__(self, sources: Sequence[Batches], mixture: "PreparedMixture", batch_size: int, seed: int) -> None:
        """sources: the rows of each source, in batches of one row"""
        self.sources, self.batch_size, self.seed = sources, batch_size, seed
        self.places, self.documents = mixture.places, mixture.separates_documents

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """As ``Batches.batch``.

        Raises:
            ConfigError: the processes do not divide the batch evenly.
        """
        check_share(self.batch_size, rank, world)
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        chosen, numbers = choose(np.arange(first, first + share), self.places, self.seed)
        pairs = zip(chosen.tolist(), numbers.tolist(), strict=True)
        return stack([self.sources[source].batch(number) for source, number in pairs], self.documents)


def stack(rows: Sequence[Batch], documents: bool) -> Batch:
    """Rows as one batch; with ``documents``, a row without document ids is one document."""
    length = 3 if documents else 2
    complete = [row if len(row) == length else (*row, torch.zeros_like(row[0])) for row in rows]
    return tuple(torch.cat(tensors) for tensors in zip(*complete, strict=True))


class PreparedMixture(PreparedData):
    """Several prepared sources as one.

    In an evaluation on windows each source has its share of them; one on all validation data has all of each source.
    """

    everything: ClassVar[str] = "the whole validation data of all sources"

    def __init__(self, sources: Sequence[Source], manifest: PlainDict) -> None:
        self.sources, self.manifest = sources, manifest
        self.places = tuple(source.places for source in sources)
        self.separates_documents = any(source.data.separates_documents for source in sources)
        self.notes = tuple(line for source in sources for line in _lines(source))

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> Batches:
        rows = [source.data.batches(block, 1, seed, order) for source in self.sources]
        return MixedBatches(rows, self, batch_size, seed)

    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        found, share = self._rows(block, windows), rows // world
        while batch := list(islice(found, rows)):
            while len(batch) < rows:
                ids, targets, *documents = batch[-1]
                batch.append((ids, torch.full_like(targets, IGNORED), *documents))
            yield stack(batch[rank * share : (rank + 1) * share], self.separates_documents)

    def _rows(self, block: int, windows: int) -> Iterator[Batch]:
        """The rows of an evaluation, one by one."""
        if not windows:
            for source in self.sources:
                yield from source.data.evaluation(block, 1, 0)
            return
        chosen, _ = choose(np.arange(windows), self.places, 0)
        rows = [
            source.data.evaluation(block, 1, count) if count else iter(())
            for source, count in zip(self.sources, self._windows(windows), strict=True)
        ]
        for number in chosen.tolist():
            if (row := next(rows[number], None)) is not None:  # a source of records may have fewer
                yield row

    def _windows(self, windows: int) -> list[int]:
        """The number of windows of each source in an evaluation."""
        chosen, _ = choose(np.arange(windows), self.places, 0)
        counts: list[int] = np.bincount(chosen, minlength=len(self.places)).tolist()
        return counts

    def evaluation_windows(self, block: int) -> int:
        return sum(source.data.evaluation_windows(block) for source in self.sources)

    def check_evaluation(self, block: int, windows: int) -> None:
        for source, count in zip(self.sources, self._windows(windows), strict=True):
            if count or not windows:
                source.data.check_evaluation(block, count)

    def beginning(self, windows: int, block: int) -> Batch:
        return self.sources[0].data.beginning(windows, block)

    def prompt(self, tokens: int) -> list[int]:
        return self.sources[0].data.prompt(tokens)

    def sizes(self) -> str:
        return f"{len(self.sources)} sources, rows of each in proportion to its weight"


def _lines(source: Source) -> list[str]:
    """The share of a source and its size, for the first lines of a run."""
    first = f"{source.places / CYCLE:6.1%} {source.name}: {source.data.sizes()}"
    return [first, *(f"       {note}" for note in source.data.notes)]
