"""Batches of token windows as a pure function of the step: resuming needs one integer."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.targets import IGNORED
from modular_gpt.core.validation import one_of, positive
from modular_gpt.data.shuffle import key_of, mix, permuted
from modular_gpt.data.token_files import TokenSplit

MODES = ("random", "epoch")
EVALUATION_SEED = 0  # of validation rows, which are the same in all runs on the same data, for any seed of a run

Tokens = TokenSplit | np.ndarray | Tensor | Sequence[int]


def as_array(tokens: Tokens) -> np.ndarray:
    """The ids as one array (n,); an array is returned without a copy. Raises a DataError for another shape or type."""
    array = tokens.array if isinstance(tokens, TokenSplit) else np.asarray(tokens)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"tokens must be one row of whole numbers, got shape {array.shape} of {array.dtype}")
    return array


def check_length(tokens: Tokens, needed: int, block: int) -> None:
    """Raise a DataError if there are fewer than ``needed`` tokens, which a window of ``block`` takes."""
    found = len(as_array(tokens))
    if found < needed:
        text = f"the {tokens.name} text" if isinstance(tokens, TokenSplit) else "the text"
        shorter = f" or take context_length={found - 1}" if found > 1 else ""
        raise DataError(
            f"{text} has {found} tokens, but a context_length of {block} needs {needed}: give it more text{shorter}"
        )


def read_windows(array: np.ndarray, starts: np.ndarray, block: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) int64 of the windows that start at ``starts`` (B,); copies only these windows."""
    ids = torch.from_numpy(array[starts[:, None] + np.arange(block + 1)].astype(np.int64))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def check_share(batch_size: int, rank: int, world: int) -> None:
    """Raise a ConfigError if the batch does not divide evenly among ``world`` processes."""
    if batch_size < 1 or batch_size % world:
        raise ConfigError(f"batch_size {batch_size} must be a multiple of the {world} processes")
    assert 0 <= rank < world, f"rank {rank} of {world}"


def epoch_order(samples: np.ndarray, size: int, seed: int) -> np.ndarray:
    """The index (n,) of each sample among ``size`` items, which are shuffled anew in each epoch.

    samples: (n,) uint64 numbers of samples, counted from the beginning of the training
    """
    epochs, positions = np.divmod(samples, np.uint64(size))
    distinct, inverse = np.unique(epochs, return_inverse=True)
    keys = np.array([key_of(seed, MODES.index("epoch"), int(epoch)) for epoch in distinct])
    return permuted(positions, size, keys[inverse])


def epoch_share(step: int, batch_size: int, size: int, seed: int, rank: int, world: int) -> np.ndarray:
    """The indices (batch_size / world,), among ``size`` items, of the rows of one process at a step (``epoch_order``).

    Raises:
        ConfigError: the processes do not divide the batch evenly.
    """
    check_share(batch_size, rank, world)
    share = batch_size // world
    samples = step * batch_size + np.arange(batch_size, dtype=np.uint64)
    return epoch_order(samples, size, seed)[rank * share : (rank + 1) * share]


def evaluation_shares(size: int, windows: int, rows: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """For each batch of an evaluation, the indices, at most rows / world, among ``size`` items of one process's rows.

    windows: number of items, chosen at random, the same in every run; 0: all items in their order
    """
    numbers = np.arange(size)
    if windows:
        numbers = epoch_order(numbers[:windows].astype(np.uint64), size, EVALUATION_SEED)
    share = rows // world
    for first in range(rank * share, len(numbers) + rank * share, rows):
        yield numbers[first : first + share]


class BatchSource:
    """The windows of each training step; it has no state.

    ``batch(step)`` depends on the tokens, the seed and the step alone, so that a step has the same samples after any
    other steps, in any number of processes, and after a resume.

    Modes:
        random: windows start at random positions (as in nanoGPT, https://github.com/karpathy/nanoGPT)
        epoch: adjacent windows, each once per epoch in an order that is shuffled per epoch; the remainder of less than
            a window is left out
    """

    def __init__(self, tokens: Tokens, block: int, batch_size: int, seed: int, mode: str = "random") -> None:
        """Read windows of ``block`` tokens, ``batch_size`` of them in a step over all processes together.

        Raises:
            ConfigError: ``mode`` is unknown, or a size is below 1.
            DataError: the text is shorter than one window and its last target.
        """
        one_of(mode, MODES, "mode")
        positive("batches", context_length=block, batch_size=batch_size)
        check_length(tokens, block + 1, block)
        self._tokens = tokens if isinstance(tokens, TokenSplit) else as_array(tokens)
        self.block, self.batch_size, self.seed, self.mode = block, batch_size, seed, mode
        targets = len(tokens) - 1
        self.windows = targets - block + 1 if mode == "random" else targets // block

    def starts(self, step: int) -> np.ndarray:
        """The index (batch_size,) of the first token of each window of a step, over all processes."""
        samples = step * self.batch_size + np.arange(self.batch_size, dtype=np.uint64)
        if self.mode == "random":
            bits = mix(mix(samples) ^ key_of(self.seed, MODES.index("random")))
            return (bits % np.uint64(self.windows)).astype(np.int64)
        return epoch_order(samples, self.windows, self.seed) * self.block

    def starts_of(self, step: int, rank: int, world: int) -> np.ndarray:
        """The ``starts`` (batch_size / world,) of the rows of one process of ``world``.

        Raises:
            ConfigError: the processes do not divide the batch evenly.
        """
        check_share(self.batch_size, rank, world)
        share = self.batch_size // world
        return self.starts(step)[rank * share : (rank + 1) * share]

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (batch_size / world, block) int64: the rows of one process of ``world``.

        The rows of all ranks, in order, are the rows of ``batch(step)``.

        Raises:
            ConfigError: the processes do not divide the batch evenly.
        """
        return read_windows(as_array(self._tokens), self.starts_of(step, rank, world), self.block)


def sequential(
    tokens: Tokens, block: int, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Adjacent windows over the whole text, in which each token but the first is a target exactly once.

    Yields inputs and targets (batch_size / world, block) int64, all of one shape. The last window and the last batch
    are filled with targets of -100, so that a batch may have any number of targets, and with several processes none.
    For a mean, add up the summed losses and the counts of targets, and divide at the end.

    Raises:
        ConfigError: the processes do not divide the batch evenly.
        DataError: there are fewer than two tokens.
    """
    check_share(batch_size, rank, world)
    check_length(tokens, 2, block)
    array = as_array(tokens)
    share, targets = batch_size // world, len(array) - 1
    for first in range(0, targets, batch_size * block):
        start = first + rank * share * block
        x = np.zeros(share * block, dtype=np.int64)
        y = np.full(share * block, IGNORED, dtype=np.int64)
        count = min(share * block, max(targets - start, 0))
        x[:count] = array[start : start + count]
        y[:count] = array[start + 1 : start + 1 + count]
        yield torch.from_numpy(x).view(share, block), torch.from_numpy(y).view(share, block)
