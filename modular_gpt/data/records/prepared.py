"""Records as data of a training: rows of one or more records, whose targets are the tokens that count."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.targets import IGNORED
from modular_gpt.core.validation import positive
from modular_gpt.data.batches import epoch_share, evaluation_shares
from modular_gpt.data.prepared import Batch, PreparedData, without_first
from modular_gpt.data.records.encode import EARLIER, END
from modular_gpt.data.records.formats import FORMATS
from modular_gpt.data.records.packing import Rows, arrange, fit_spans
from modular_gpt.data.records.prepare import RecordSplit
from modular_gpt.data.records.questions import Question
from modular_gpt.data.templates import ChatTemplate
from modular_gpt.data.tokenizers.base import Tokenizer


class RecordRows:
    """The rows of a split for one context length."""

    def __init__(self, split: RecordSplit, rows: Rows, counting: int, bos_id: int | None) -> None:
        """counting: the lowest role that counts in the loss; bos_id: id that stays at the start of a cut record"""
        self.split, self.rows, self.counting, self.bos_id = split, rows, counting, bos_id

    def batch(self, numbers: np.ndarray, share: int, separate: bool) -> Batch:
        """Inputs and targets (share, block), and with ``separate`` the record of each token (share, block), from 1.

        numbers: indices of the rows, at most ``share``; further rows of the batch have no targets
        separate: whether rows may have several records, between which there is no attention
        """
        shape = share, self.rows.block
        x, y = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)
        for row, number in enumerate(numbers.tolist()):
            place = 0
            for count, record in enumerate(self.rows.records(number).tolist(), 1):
                ids, targets = self.record(record)
                filled = slice(place, place := place + len(ids))
                x[row, filled], y[row, filled], documents[row, filled] = ids, targets, count
            documents[row, place:] = documents[row].max() + 1  # padding, a document without targets
        batch = (x, y, documents) if separate else (x, y)
        return tuple(torch.from_numpy(array) for array in batch)

    def record(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, (places,) each, of a record; targets are -100 for tokens that do not count."""
        spans, tokens = self.rows.spans, self.split.tokens.array
        begin, end = int(spans.starts[number]), int(spans.ends[number])
        ids = tokens[begin:end].astype(np.int64)
        if spans.cut_left[number] and (first := int(tokens[self.split.starts[number]])) == self.bos_id:
            ids[0] = first
        counts = self.split.roles[begin + 1 : end] >= self.counting
        return ids[:-1], np.where(counts, ids[1:], IGNORED)


@dataclass
class PreparedRecords(PreparedData):
    """The records of both splits.

    counting: the lowest role that counts in the loss
    packing: whether several records share a row, each with separate attention
    bos_id: of the tokenizer; kept at the beginning of records that are cut
    template: renders conversations; None if there are none
    ask_first: returns the questions of the first n validation records
    """

    everything: ClassVar[str] = "all validation records"
    measures_accuracy: ClassVar[bool] = True
    has_prompts: ClassVar[bool] = True
    answer_end: ClassVar[str] = END
    unpacked_by: ClassVar[str] = "set data.packing=false, which gives each record a row"

    train: RecordSplit
    validation: RecordSplit
    manifest: PlainDict
    counting: int
    packing: bool
    bos_id: int | None = None
    template: ChatTemplate | None = None
    ask_first: Callable[[int], list[Question]] | None = None
    _rows: dict[tuple[str, int, bool], RecordRows] = field(default_factory=dict, repr=False)

    @property
    def separates_documents(self) -> bool:  # type: ignore[override]
        return self.packing

    def questions(self, count: int) -> list[Question]:
        return [] if self.ask_first is None else self.ask_first(count)

    def rows(self, split: RecordSplit, block: int, packing: bool | None = None) -> RecordRows:
        """The rows of a split with ``block`` tokens each; packing: overrides that of this data."""
        packing = self.packing if packing is None else packing
        key = split.tokens.name, block, packing
        if key not in self._rows:
            first = split.answers(max(self.counting, EARLIER))
            spans = fit_spans(split.starts, first, split.ends, block)
            self._rows[key] = RecordRows(split, arrange(spans, block, packing), self.counting, self.bos_id)
        return self._rows[key]

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> "RecordBatches":
        """Each row once per epoch, shuffled anew in each epoch, for any ``order``."""
        return RecordBatches(self.rows(self.train, block), batch_size, seed, self.packing)

    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Random rows of the validation records, the same in every run, or all rows in their order."""
        source = self.rows(self.validation, block)
        for numbers in evaluation_shares(len(source.rows), windows, rows, rank, world):
            yield source.batch(numbers, rows // world, self.packing)

    def evaluation_windows(self, block: int) -> int:
        return len(self.rows(self.validation, block).rows)

    def rows_per_epoch(self, block: int) -> int:
        return len(self.rows(self.train, block).rows)

    def check_evaluation(self, block: int, windows: int) -> None:
        """Never raises an error: there is at least one validation record."""

    def beginning(self, windows: int, block: int) -> Batch:
        """The first validation records, one per row, so that any attention can process them."""
        source = self.rows(self.validation, block, packing=False)
        numbers = np.arange(min(windows, len(source.rows)))
        return source.batch(numbers, len(numbers), separate=False)

    def prompt(self, tokens: int) -> list[int]:
        """The last ``tokens`` ids of the prompt of the first validation record, without the BOS token."""
        begin, end = int(self.validation.starts[0]), int(self.validation.answers(EARLIER)[0])
        ids: list[int] = self.validation.tokens.array[begin : max(end, begin + 1)].tolist()
        return without_first(ids, self.bos_id)[-tokens:]

    def tokenizer_of_model(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer with the chat template of the conversations."""
        return tokenizer if self.template is None else tokenizer.with_template(self.template)

    def sizes(self) -> str:
        tokens = self.train.tokens.count
        counted = sum(self.train.role_counts[self.counting :])
        return (
            f"{counts_in_words(self.train.formats)}, {tokens:,} tokens, {counted / tokens:.0%} of them count;"
            f" {sum(self.validation.formats.values()):,} to validate"
        )

    def describe_rows(self, block: int) -> list[str]:
        """Lines about the rows, the records that are cut to fit, and those that are left out."""
        rows = self.rows(self.train, block).rows
        left, right = int(rows.spans.cut_left.sum()), int(rows.spans.cut_right.sum())
        lines = [f"{len(rows):,} rows, {rows.filled:.0%} of their places filled"]
        if left:
            lines.append(f"{records(left)} longer than the context: the beginning of the prompt is cut off")
        if right:
            lines.append(f"{records(right)} longer than the context even without a prompt: the end is cut off")
        lines += [
            f"{records(split.skipped, 'bad ')} left out; the first: {split.mistakes[0]}"
            for split in (self.train, self.validation)
            if split.skipped and (split is self.train or split.mistakes != self.train.mistakes)
        ]
        return lines


def records(count: int, adjective: str = "") -> str:
    """The beginning of a sentence about a number of records, such as ``2 bad records are``."""
    return f"{count:,} {adjective}record{' is' if count == 1 else 's are'}"


def counts_in_words(formats: Mapping[str, int]) -> str:
    """Numbers of records by format, as in ``1,200 conversations and 1 text``."""
    by_noun: dict[tuple[str, str], int] = {}
    for name, count in formats.items():
        noun = FORMATS[name].noun, FORMATS[name].plural
        by_noun[noun] = by_noun.get(noun, 0) + count
    return " and ".join(f"{count:,} {noun if count == 1 else plural}" for (noun, plural), count in by_noun.items())


class RecordBatches:
    """The rows of each training step; it has no state."""

    def __init__(self, rows: RecordRows, batch_size: int, seed: int, separate: bool) -> None:
        positive("batches", batch_size=batch_size)
        self.rows, self.batch_size, self.seed, self.separate = rows, batch_size, seed, separate

    def numbers(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """(batch_size / world,) the numbers of the rows of one process at a step."""
        return epoch_share(step, self.batch_size, len(self.rows.rows), self.seed, rank, world)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Inputs, targets and numbers of records, each (batch_size / world, block) int64: the rows of one process.

        Raises:
            ConfigError: the processes do not divide the batch evenly.
        """
        numbers = self.numbers(step, rank, world)
        return self.rows.batch(numbers, len(numbers), self.separate)
