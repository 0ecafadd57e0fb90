"""Preference pairs as data of a training: two rows with the same prompt, the chosen and the rejected answer."""

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.targets import IGNORED
from modular_gpt.core.validation import positive
from modular_gpt.data.batches import epoch_share, evaluation_shares
from modular_gpt.data.prepared import Batch, PreparedData, without_first
from modular_gpt.data.records.packing import fit_spans


class Pair(NamedTuple):
    """The ids of a prompt, at least one, and of two answers with their ends."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def row(
    prompt: Sequence[int], answer: Sequence[int], block: int, first_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets (block,) of an answer after its prompt, cut as other records.

    first_id: an id that is kept if the prompt begins with it, also when the prompt is cut
    """
    first, end = len(prompt), len(prompt) + len(answer)
    spans = fit_spans(np.array([0]), np.array([first]), np.array([end]), block)
    begin, end = int(spans.starts[0]), int(spans.ends[0])
    ids = np.array([*prompt, *answer], dtype=np.int64)[begin:end]
    if begin and first - begin > 1 and prompt[0] == first_id:
        ids[0] = prompt[0]
    x, y = np.zeros(block, dtype=np.int64), np.full(block, IGNORED, dtype=np.int64)
    x[: len(ids) - 1] = ids[:-1]
    y[first - begin - 1 : len(ids) - 1] = ids[first - begin :]
    return x, y


class PairBatches:
    """The pairs of each training step, each once per epoch in another random order; it has no state."""

    def __init__(self, data: "PreparedPairs", block: int, batch_size: int, seed: int) -> None:
        positive("batches", context_length=block, batch_size=batch_size)
        self.data, self.block, self.batch_size, self.seed = data, block, batch_size, seed

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Inputs and targets (batch_size / world, 2, block): the chosen and the rejected answer of each pair.

        Raises:
            ConfigError: the processes do not divide the batch evenly.
        """
        numbers = epoch_share(step, self.batch_size, len(self.data.train), self.seed, rank, world)
        return self.data.rows(self.data.train, numbers, len(numbers), self.block)


class PreparedPairs(PreparedData):
    """The pairs of both splits; a batch has two rows for each, (B, 2, T)."""

    everything: ClassVar[str] = "all validation pairs"
    unit: ClassVar[str] = "pairs"

    def __init__(
        self, train: Sequence[Pair], validation: Sequence[Pair], manifest: PlainDict, bos_id: int | None = None
    ) -> None:
        self.train, self.validation, self.manifest, self.bos_id = train, validation, manifest, bos_id

    def rows(self, pairs: Sequence[Pair], numbers: np.ndarray, share: int, block: int) -> Batch:
        """Inputs and targets (share, 2, block) of the pairs ``numbers``, filled up with pairs without targets."""
        x = np.zeros((share, 2, block), dtype=np.int64)
        y = np.full((share, 2, block), IGNORED, dtype=np.int64)
        for place, number in enumerate(numbers.tolist()):
            pair = pairs[number]
            for side, answer in enumerate((pair.chosen, pair.rejected)):
                x[place, side], y[place, side] = row(pair.prompt, answer, block, self.bos_id)
        return torch.from_numpy(x), torch.from_numpy(y)

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> PairBatches:
        """Each pair once per epoch, shuffled anew in each epoch, for any ``order``."""
        self.row_tokens = 2 * block
        return PairBatches(self, block, batch_size, seed)

    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Random validation pairs, the same in every run, or all in their order."""
        for numbers in evaluation_shares(len(self.validation), windows, rows, rank, world):
            yield self.rows(self.validation, numbers, rows // world, block)

    def evaluation_windows(self, block: int) -> int:
        return len(self.validation)

    def rows_per_epoch(self, block: int) -> int:
        return len(self.train)

    def check_evaluation(self, block: int, windows: int) -> None:
        """Never raises an error: there is at least one validation pair."""

    def beginning(self, windows: int, block: int) -> Batch:
        """The chosen answers of the first validation pairs, (windows, block)."""
        count = min(windows, len(self.validation))
        x, y = self.rows(self.validation, np.arange(count), count, block)
        return x[:, 0].contiguous(), y[:, 0].contiguous()

    def prompt(self, tokens: int) -> list[int]:
        return without_first(self.validation[0].prompt, self.bos_id)[-tokens:]

    def sizes(self) -> str:
        return f"{len(self.train):,} pairs of answers to train on, {len(self.validation):,} to validate"
