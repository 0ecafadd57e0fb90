"""Rows of a PyTorch Dataset or DataLoader as data of a training, in an order that depends on the step alone."""

import hashlib
from collections.abc import Iterator, Mapping, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from modular_gpt.core.errors import DataError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data.batches import epoch_share
from modular_gpt.data.in_memory import Split, padded
from modular_gpt.data.prepared import Batch
from modular_gpt.data.shuffle import key_of

FORMS = "(ids, targets), {'input_ids': ..., 'labels': ...} as transformers has them, or one row of ids"
Rows = list[tuple[Tensor, Tensor]]


class DatasetRows(Split):
    """The items of a map-style Dataset, each a row."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        """
        Raises:
            DataError: the dataset has no length or no items, or an item is in none of the ``FORMS``.
        """
        if not isinstance(dataset, Sized):
            raise DataError(f"a {type(dataset).__name__} has no length: give it to a DataLoader, and that to fit")
        self.dataset, self.count = dataset, len(dataset)
        if not self.count:
            raise DataError(f"the {type(dataset).__name__} has no items")
        first = self.row(0)
        self.row_tokens = len(first[0])
        self.fingerprint = hashlib.sha256(
            repr([type(dataset).__qualname__, self.count, *self._samples()]).encode()
        ).hexdigest()

    def _samples(self) -> list[list[int]]:
        """Three rows for the fingerprint; none of a dataset whose items change between reads."""
        numbers = sorted({0, self.count // 2, self.count - 1})
        first, second = ([torch.cat(self.row(number)).tolist() for number in numbers] for _ in range(2))
        return first if first == second else []

    def row(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, (T,) each, of an item."""
        return read_row(self.dataset[number], f"item {number} of the {type(self.dataset).__name__}")

    def rows(self, block: int) -> int:
        return self.count

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> "DatasetBatches":
        return DatasetBatches(self, block, batch_size, seed)

    def evaluation(self, block: int, rows: int, windows: int) -> Iterator[Batch]:
        """The first ``windows`` rows, or all; the last batch is filled up with rows without targets."""
        count = min(windows or self.count, self.count)
        for start in range(0, count, rows):
            taken = [self.row(number) for number in range(start, min(start + rows, count))]
            yield batch_of(taken, block, rows)

    def size(self) -> str:
        return f"{self.count:,} rows"


class DatasetBatches:
    """The rows of each step: each item once per epoch, in an order that is shuffled per epoch."""

    def __init__(self, source: DatasetRows, block: int, batch_size: int, seed: int) -> None:
        self.source, self.block, self.batch_size, self.seed = source, block, batch_size, seed

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        numbers = epoch_share(step, self.batch_size, self.source.count, self.seed, rank, world)
        return batch_of([self.source.row(int(number)) for number in numbers], self.block, len(numbers))


class LoaderRows(Split):
    """The batches of a DataLoader, in its order and of its size."""

    def __init__(self, loader: DataLoader[Any], multiple: int = 1) -> None:
        """multiple: number of micro-batches, by which the size of every batch is made divisible"""
        self.loader, self.multiple = loader, multiple
        first = next(self._pass(0, 0), None)
        if first is None:
            raise DataError("the DataLoader yields no batch: with drop_last, its dataset may be smaller than a batch")
        rows = read_batch(first)
        self.batch_size, self.row_tokens = loader.batch_size or len(rows), max(len(ids) for ids, _ in rows)
        named = [type(loader.dataset).__qualname__, self.batch_size, self.steps]
        with_rows = isinstance(loader.dataset, Sized) and hasattr(loader.dataset, "__getitem__")
        fingerprint = DatasetRows(loader.dataset).fingerprint if with_rows and loader.collate_fn is _DEFAULT else ""
        self.fingerprint = hashlib.sha256(repr([*named, fingerprint]).encode()).hexdigest()

    @property
    def steps(self) -> int | None:
        """Number of batches of a pass; None if the loader has no length."""
        try:
            return len(self.loader)
        except TypeError:
            return None

    def rows(self, block: int) -> int | None:
        return None if self.steps is None or self.batch_size is None else self.steps * self.batch_size

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> "LoaderBatches":
        return LoaderBatches(self, block, seed)

    def evaluation(self, block: int, rows: int, windows: int) -> Iterator[Batch]:
        """The first ``windows`` rows of a pass, or all; a shuffling loader has the same order in each evaluation."""
        left = windows
        for batch in self._pass(0, 0):
            taken = read_batch(batch)[: left if windows else None]
            yield batch_of(taken, block, len(taken))
            left -= len(taken)
            if windows and left <= 0:
                return

    def _pass(self, seed: int, epoch: int) -> Iterator[object]:
        """A pass over the loader, with random numbers that depend on the seed, the epoch and the batch alone."""
        generator, number = self.loader.generator, 0
        loader_seed = None if generator is None else generator.initial_seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_signed(key_of(seed, epoch)))
            if generator is not None:
                generator.manual_seed(_signed(key_of(cast(int, loader_seed) & (2**63 - 1), epoch)))
            iterator = iter(self.loader)
        while True:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_signed(key_of(seed, epoch, number)))
                batch = next(iterator, None)
            if generator is not None and number == 0:
                generator.manual_seed(cast(int, loader_seed))  # the seed from which later passes derive theirs
            if batch is None:
                return
            yield batch
            number += 1

    def size(self) -> str:
        return f"{self.steps or 'any number of'} batches of {self.batch_size}"


class LoaderBatches:
    """The batches of the steps, pass after pass. To reach a later step, the batches before it are read and skipped."""

    def __init__(self, source: LoaderRows, block: int, seed: int) -> None:
        self.source, self.block, self.seed = source, block, seed
        self.next_step, self.epoch = 0, 0
        self.iterator: Iterator[object] | None = None
        self.last: tuple[int, Batch] | None = None

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        if self.last is not None and self.last[0] == step:
            return self.last[1]
        if self.iterator is None or step < self.next_step:
            self.epoch = 0 if self.source.steps is None else step // self.source.steps
            self.next_step = 0 if self.source.steps is None else self.epoch * self.source.steps
            self.iterator = self.source._pass(self.seed, self.epoch)
        while self.next_step < step:
            self._read()
        rows = read_batch(self._read())
        multiple = self.source.multiple
        self.last = step, batch_of(rows, self.block, -(-len(rows) // multiple) * multiple)
        return self.last[1]

    def _read(self) -> object:
        assert self.iterator is not None
        for batch in self.iterator:
            self.next_step += 1
            return batch
        self.epoch += 1
        self.iterator = self.source._pass(self.seed, self.epoch)
        for batch in self.iterator:
            self.next_step += 1
            return batch
        raise DataError(f"the DataLoader yields no batch in pass {self.epoch + 1}: it can be read only once")


_DEFAULT = DataLoader([0]).collate_fn  # type: ignore[arg-type]


def _signed(key: np.uint64) -> int:
    """A key as a non-negative seed of 63 bits, which every generator accepts."""
    return int(key) & (2**63 - 1)


def divide(dataset: Dataset[Any], fraction: float) -> tuple[Dataset[Any], Dataset[Any]]:
    """Split a dataset into training items and its last ``fraction``, the validation items.

    Raises:
        DataError: one of the splits would be empty.
    """
    count = len(cast(Sized, dataset)) if isinstance(dataset, Sized) else 0
    border = int(count * (1 - fraction))
    if not 0 < border < count:
        raise DataError(f"the dataset has {count} items, too few to hold out validation={fraction} of them")
    return Subset(dataset, range(border)), Subset(dataset, range(border, count))


def read_row(item: object, place: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets, (T,) each, of one row in any of the ``FORMS``; place: names the row in messages.

    Raises:
        DataError: the item has another form.
    """
    if isinstance(item, Mapping):
        return _read_mapping(item, place)
    if isinstance(item, tuple | list) and len(item) == 2 and not isinstance(item[0], int):
        ids, targets = (_numbers(value, place) for value in item)
        if ids.shape != targets.shape:
            raise DataError(f"{place} has {len(ids)} ids and {len(targets)} targets: give as many of both")
        return ids, targets
    ids = _numbers(item[0] if isinstance(item, tuple) and len(item) == 1 else item, place)
    if len(ids) < 2:
        raise DataError(f"{place} has {len(ids)} token, and a row needs 2: the second is the target of the first")
    return ids[:-1], ids[1:]


def _read_mapping(item: Mapping[Any, object], place: str) -> tuple[Tensor, Tensor]:
    """A row in the form of transformers: labels are aligned with the ids, and padding is masked."""
    if "input_ids" not in item:
        raise DataError(f"{place} has {', '.join(map(str, item))}: a row is {FORMS}")
    ids = _numbers(item["input_ids"], place)
    labels = _numbers(item["labels"], place) if item.get("labels") is not None else ids
    if ids.shape != labels.shape:
        raise DataError(f"{place} has {len(ids)} input_ids and {len(labels)} labels: give as many of both")
    if item.get("attention_mask") is not None:
        kept = _numbers(item["attention_mask"], place).bool()
        ids, labels = ids[kept], labels[kept]
    if len(ids) < 2:
        raise DataError(f"{place} has {len(ids)} token, and a row needs 2: the second is the target of the first")
    return ids[:-1], labels[1:]


def _numbers(value: object, place: str) -> Tensor:
    try:
        numbers = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"{place} is a {type(value).__name__}: a row is {FORMS}") from None
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise DataError(f"{place} has {numbers.dtype} of shape {tuple(numbers.shape)}: a row is {FORMS}")
    return numbers.detach().cpu().long()


def read_batch(batch: object) -> Rows:
    """The rows of a batch of a DataLoader, in the ``FORMS`` with a batch dimension. Raises as ``read_row``."""
    place = "a batch of the DataLoader"
    if isinstance(batch, Mapping):
        columns = {name: batch[name] for name in ("input_ids", "labels", "attention_mask") if name in batch}
        if "input_ids" not in columns:
            raise DataError(f"{place} has {', '.join(map(str, batch))}: a row is {FORMS}")
        rows: list[object] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    elif isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(item, Tensor) for item in batch):
        rows = list(zip(*batch, strict=True))
    elif isinstance(batch, tuple | list) and len(batch) == 1:
        rows = list(batch[0])
    elif isinstance(batch, Tensor | tuple | list):
        rows = list(batch)
    else:
        raise DataError(f"{place} is a {type(batch).__name__}: a row is {FORMS}")
    return [read_row(row, place) for row in rows]


def batch_of(rows: Rows, block: int, size: int) -> Batch:
    """Inputs and targets (size, T) of some rows, filled up with rows without targets.

    Raises:
        DataError: a row is longer than the context.
    """
    longest = max(len(ids) for ids, _ in rows)
    if longest > block:
        raise DataError(
            f"a row has {longest} tokens, but the model's context_length is {block}: cut the rows, or give the model"
            " a longer context"
        )
    filler = rows[0][0][:1] * 0
    filler_rows = [(filler, torch.full_like(filler, IGNORED))] * (size - len(rows))
    return padded([*rows, *filler_rows], IGNORED)
