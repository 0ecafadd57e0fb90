"""Prepared data: the batches of training and evaluation, and the record of them in a run."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from modular_gpt.core.errors import DataError
from modular_gpt.core.plain_types import PlainDict

if TYPE_CHECKING:
    from modular_gpt.data.records.questions import Question
    from modular_gpt.data.tokenizers.base import Tokenizer

# Inputs (B, T) int64; targets (B, T) int64, -100 where none counts; and where tokens see their own document alone, the
# numbers of the documents (B, T) int64.
Batch = tuple[Tensor, ...]


class Batches(Protocol):
    """The batches of a training. ``batch(step)`` is a function of the step alone, so that resuming needs no state."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of one of ``world`` processes; those of all ranks, in order, are the rows of ``batch(step)``."""


class PreparedData(ABC):
    """A corpus as one tokenizer encodes it: the batches of a training and of its evaluations.

    manifest: all that is recorded about it (corpus, tokenizer, counts, hashes), plain JSON values
    everything: phrase for all validation data, in messages
    measures_accuracy: evaluations also report the share of counted targets that are the most likely token
    has_prompts: ``prompt`` is a whole one, and its answer ends with a token that ends a text, if there is one
    answer_end: text that ends an answer where the tokenizer has no such token; empty: none
    unit: noun of what a loss is a mean over, in the plural: targets (nats per token), or pairs of answers
    validates: there is validation data; without it a training evaluates nothing
    separates_documents: batches have the numbers of documents, which only some attentions keep apart
    unpacked_by: clause that says how to do without, in the message about an attention that cannot
    epoch_tokens: number of tokens of one pass over the training data; None: it is unknown, or all data is new
    row_tokens: number of tokens of a training row, where that is not the model's context_length
    zlib_bits_per_byte: bits that zlib -9 needs for a byte of the validation text; None: it is no text
    notes: further lines about the data for the beginning of a run
    """

    manifest: PlainDict
    everything: ClassVar[str] = "the whole validation text"
    measures_accuracy: ClassVar[bool] = False
    has_prompts: ClassVar[bool] = False
    answer_end: ClassVar[str] = ""
    unit: ClassVar[str] = "targets"
    validates: bool = True
    separates_documents: bool = False
    unpacked_by: ClassVar[str] = "give one document a row"
    epoch_tokens: int | None = None
    row_tokens: int | None = None
    zlib_bits_per_byte: float | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def batches(self, block: int, batch_size: int, seed: int, order: str) -> Batches:
        """The batches of a training.

        block: T, tokens of a row; batch_size: rows of a step over all processes; order: ``trainer.order``

        Raises:
            ConfigError: there is no such order.
            DataError: there are too few tokens for a row.
        """

    @abstractmethod
    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Fixed batches to evaluate on, the same in every run: inputs and targets, each (rows / world, block).

        windows: number of rows that count, whatever ``rows`` is; 0: all validation data. The rows that fill up the last
            batch have targets of -100.
        """

    @abstractmethod
    def evaluation_windows(self, block: int) -> int:
        """Number of rows that all validation data fills."""

    @abstractmethod
    def check_evaluation(self, block: int, windows: int) -> None:
        """Raise a DataError if there is too little validation data for ``evaluation``."""

    @abstractmethod
    def beginning(self, windows: int, block: int) -> Batch:
        """The first ``windows`` rows of the validation data, or as many as there are."""

    @abstractmethod
    def prompt(self, tokens: int) -> list[int]:
        """The first ids of the validation data, at most ``tokens``: the prompt of samples."""

    @abstractmethod
    def sizes(self) -> str:
        """A phrase with the sizes of the training and validation data."""

    def tokens_per_epoch(self, block: int) -> int | None:
        """Number of tokens, padding included, of one pass over the training data; None: new data at every step."""
        rows = self.rows_per_epoch(block)
        return self.epoch_tokens if self.epoch_tokens is not None or rows is None else rows * block

    def rows_per_epoch(self, block: int) -> int | None:
        """Number of rows of ``block`` tokens of one pass over the training data; None: new data at every step."""
        return None if self.epoch_tokens is None else max(1, (self.epoch_tokens - 1) // block)

    def describe_rows(self, block: int) -> list[str]:
        """``notes``, and lines about the training data in rows of ``block`` tokens."""
        return list(self.notes)

    def questions(self, count: int) -> list["Question"]:
        """The first ``count`` validation records that ask for an answer; none where the data has no records."""
        return []

    def bits_per_byte(self, loss: float) -> float | None:
        """A mean validation loss (nats per token) as bits per byte of text; None where there is no text."""
        return None

    def tokenizer_of_model(self, tokenizer: "Tokenizer") -> "Tokenizer":
        """The tokenizer to save with a model that learned from this data, made of the one that encoded it."""
        return tokenizer

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints that a checkpoint records and a resumed run compares."""
        return {part: self.manifest[part]["fingerprint"] for part in ("corpus", "tokenizer")}

    def check_identity(self, recorded: Mapping[str, str]) -> None:
        """Raise a DataError if this is not the data whose ``identity`` was recorded."""
        remedy = {
            "corpus": "restore the text, or start a new run",
            "tokenizer": "use the tokenizer of the checkpoint, or start a new run",
        }
        for part, fingerprint in self.identity.items():
            if recorded.get(part) != fingerprint:
                old = str(recorded.get(part))[:12]
                raise DataError(
                    f"the {part} is not the one of the checkpoint (fingerprint {fingerprint[:12]} now, {old} then):"
                    f" {remedy[part]}"
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a DataError when ids of the tokenizer lie beyond a model's vocabulary."""
        needed = self.manifest["tokenizer"]["vocab_size"]
        if needed > vocab_size:
            raise DataError(
                f"the tokenizer has {needed} ids but the model only {vocab_size}:"
                f" set vocab_size to {needed} or more, or take the tokenizer the model was trained with"
            )


def without_first(ids: list[int], first_id: int | None) -> list[int]:
    """The ids of a prompt without the token that begins a text, unless it is the only one."""
    return ids[1:] if len(ids) > 1 and ids[0] == first_id else ids
