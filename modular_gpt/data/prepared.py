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

# Inputs (B, T) int64; targets (B, T) int64, -100 where there is none; and if documents are separated, the document ids
# of the tokens (B, T) int64.
Batch = tuple[Tensor, ...]


class Batches(Protocol):
    """The batches of a training. ``batch(step)`` is a function of the step alone, so that resuming needs no state."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The rows of one of ``world`` processes; those of all ranks, in order, are the rows of ``batch(step)``."""


class PreparedData(ABC):
    """A corpus encoded by a tokenizer: the batches of a training and of its evaluations.

    manifest: the record of the data (corpus, tokenizer, counts, hashes) as plain JSON values
    everything: phrase for all validation data, in messages
    measures_accuracy: whether evaluations also report the fraction of targets that are the most likely token
    has_prompts: whether ``prompt`` is a complete prompt, whose answer ends with an end token if the tokenizer has one
    answer_end: text that ends an answer if the tokenizer has no end token; empty: none
    unit: plural noun of the items that a loss is a mean over: targets (nats per token), or pairs of answers
    validates: whether there is validation data; without it a training evaluates nothing
    separates_documents: whether batches have document ids, which only some attentions support
    unpacked_by: remedy in the error message for an attention that does not support them
    epoch_tokens: number of tokens of one pass over the training data; None: it is unknown, or all data is new
    row_tokens: number of tokens of a training row if it is not the model's context_length, else None
    zlib_bits_per_byte: bits that zlib -9 needs per byte of the validation text; None: the data is no text
    notes: lines about the data that a run prints at its beginning
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

        windows: number of rows to evaluate over all batches; 0: all validation data. Rows that fill up the last batch
            have targets of -100.
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
        """The first ``count`` validation records that ask for an answer; [] for data without records."""
        return []

    def bits_per_byte(self, loss: float) -> float | None:
        """A mean validation loss (nats per token) in bits per byte of text; None if the data is no text."""
        return None

    def tokenizer_of_model(self, tokenizer: "Tokenizer") -> "Tokenizer":
        """The tokenizer to save with a model trained on this data; tokenizer: the one that encoded it."""
        return tokenizer

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints that a checkpoint records and a resumed run compares."""
        return {name: self.manifest[name]["fingerprint"] for name in ("corpus", "tokenizer")}

    def check_identity(self, recorded: Mapping[str, str]) -> None:
        """Raise a DataError if this is not the data whose ``identity`` was recorded."""
        remedy = {
            "corpus": "restore the text, or start a new run",
            "tokenizer": "use the tokenizer of the checkpoint, or start a new run",
        }
        for name, fingerprint in self.identity.items():
            if recorded.get(name) != fingerprint:
                old = str(recorded.get(name))[:12]
                raise DataError(
                    f"the {name} is not the one of the checkpoint (fingerprint {fingerprint[:12]} now, {old} then):"
                    f" {remedy[name]}"
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a DataError if the tokenizer has more ids than the model."""
        needed = self.manifest["tokenizer"]["vocab_size"]
        if needed > vocab_size:
            raise DataError(
                f"the tokenizer has {needed} ids but the model only {vocab_size}:"
                f" set vocab_size to {needed} or more, or take the tokenizer the model was trained with"
            )


def without_first(ids: list[int], first_id: int | None) -> list[int]:
    """The ids of a prompt without the token that begins a text, unless it is the only one."""
    return ids[1:] if len(ids) > 1 and ids[0] == first_id else ids
