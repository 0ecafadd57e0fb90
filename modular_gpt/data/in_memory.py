"""Training data from objects in memory (texts, token ids or rows), of which nothing is written to disk."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.data.batches import Tokens, as_array
from modular_gpt.data.corpora.base import Corpus, TextChunk, before_border, chunk_text
from modular_gpt.data.prepare import encode_documents
from modular_gpt.data.prepared import Batch, Batches, PreparedData
from modular_gpt.data.prepared_text import PreparedText
from modular_gpt.data.token_files import TokenSplit
from modular_gpt.data.tokenizers.base import Tokenizer

Texts = Mapping[str, Sequence[str]]  # the documents of each split


class Split(ABC):
    """The training data, or the validation data.

    fingerprint: SHA-256 (hexadecimal) that changes with the data
    batch_size: rows of a batch if the data comes in batches, else None
    tokens: number of tokens of a pass; None: unknown
    row_tokens: number of tokens of a row; None: unknown, or rows are windows of the context length
    """

    fingerprint: str
    batch_size: int | None = None
    tokens: int | None = None
    row_tokens: int | None = None

    @abstractmethod
    def rows(self, block: int) -> int | None:
        """Number of rows of a pass; None if it is unknown before the first pass."""

    @abstractmethod
    def batches(self, block: int, batch_size: int, seed: int, order: str) -> Batches:
        """As ``PreparedData.batches``."""

    @abstractmethod
    def evaluation(self, block: int, rows: int, windows: int) -> Iterator[Batch]:
        """As ``PreparedData.evaluation``, in one process."""

    def check_evaluation(self, block: int, windows: int) -> None:  # noqa: B027  one row is enough for most splits
        """Raise a DataError if there is too little data for ``evaluation``."""

    def bits_per_byte(self, loss: float) -> float | None:
        """As ``PreparedData.bits_per_byte``."""
        return None

    @abstractmethod
    def size(self) -> str:
        """A phrase with the size of the data."""


@dataclass(frozen=True)
class _SplitInMemory(TokenSplit):
    """Tokens in memory; ``path`` is not used."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)

    @property
    def array(self) -> np.ndarray:
        return self.ids


class TokensInMemory(Split):
    """One row of token ids, which is read in windows as the token files of a corpus are."""

    def __init__(self, ids: Tokens, split: str = "train", text_bytes: int = 0) -> None:
        """text_bytes: size of the text in UTF-8; 0: there is no text

        Raises:
            DataError: the ids are not one row of whole numbers of 0 or more.
        """
        array = _one_row(ids)
        if array.size and int(array.min()) < 0:
            raise DataError(f"token ids are 0 or more, got {int(array.min())}")
        self.fingerprint = hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()
        self.array, self.text_bytes, self.tokens = array, text_bytes, len(array)
        tokens = _SplitInMemory(split, Path(), array.dtype, len(array), text_bytes, self.fingerprint, None, ids=array)
        self._text = PreparedText(tokens, tokens, {})

    def rows(self, block: int) -> int:
        return (len(self.array) - 1) // block

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> Batches:
        return self._text.batches(block, batch_size, seed, order)

    def evaluation(self, block: int, rows: int, windows: int) -> Iterator[Batch]:
        return self._text.evaluation(block, rows, windows)

    def check_evaluation(self, block: int, windows: int) -> None:
        needed, found = block + 1 if windows else 2, len(self.array)
        if found < needed:
            raise DataError(
                f"the validation data has {found} token{'s' if found > 1 else ''}, and a context_length of {block}"
                f" needs {needed}: hold out more, or evaluate all of it by eval_batches=0"
            )

    def bits_per_byte(self, loss: float) -> float | None:
        return self._text.bits_per_byte(loss) if self.text_bytes else None

    def size(self) -> str:
        return f"{len(self.array):,} tokens"


def _one_row(ids: Tokens) -> np.ndarray:
    """The token ids (n,) as an array."""
    try:
        return as_array(ids.detach().cpu() if isinstance(ids, Tensor) else ids)
    except ValueError as error:  # NumPy's for lists of different lengths, or a DataError, which is a ValueError, too
        if isinstance(error, DataError):
            raise
        raise DataError("tokens must be one row of whole numbers, got lists of different lengths") from error


class TextInMemory(Corpus):
    """Documents in memory, for tokenizers that learn from text."""

    def __init__(self, texts: Texts) -> None:
        """texts: of each split, whole documents

        Raises:
            DataError: a text is not a str, or a split is empty.
        """
        for split, documents in texts.items():
            wrong = next((text for text in documents if not isinstance(text, str)), None)
            if wrong is not None:
                raise DataError(f"the {split} data must be texts, got a {type(wrong).__name__}: {wrong!r:.60}")
            if not any(documents):
                raise DataError(f"the {split} text is empty: give more of it")
        self.texts = texts

    def documents(self, split: str) -> Iterator[TextChunk]:
        for number, text in enumerate(self.texts.get(split, ())):
            for chunk in chunk_text([text]):
                yield TextChunk(f"text {number}", chunk)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(dict(self.texts), sort_keys=True).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        return {"documents": sum(len(documents) for documents in self.texts.values())}

    def tokens(self, split: str, tokenizer: Tokenizer) -> TokensInMemory:
        """The tokens of a split, with the tokenizer's ``eos_id`` between documents, as in token files."""
        ids = [chunk_ids for chunk_ids, _ in encode_documents(self.documents(split), tokenizer)]
        size = sum(len(text.encode()) for text in self.texts[split])
        return TokensInMemory(np.concatenate(ids) if ids else np.zeros(0, np.int64), split, size)


def divide_texts(texts: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Split texts into training texts and the last ``fraction`` of all characters, the validation texts.

    The border is that of ``data=text``.

    Raises:
        DataError: one of the splits would be empty.
    """
    total = sum(map(len, texts))
    border = int(total * (1 - fraction))
    if not 0 < border < total:
        raise DataError(f"the text has {total} characters, too few to hold out validation={fraction} of it")
    train, validation = [], []
    for text, at in zip(texts, before_border(map(len, texts), border), strict=True):
        train += [text[:at]] if at else []
        validation += [text[at:]] if at < len(text) else []
    return train, validation


class InMemoryData(PreparedData):
    """Data in memory: a training split, and a validation split or None."""

    everything = "all validation data"

    def __init__(self, train: Split, validation: Split | None, tokenizer: Tokenizer | None) -> None:
        self.train, self.validation = train, validation
        self.validates = validation is not None
        self.epoch_tokens, self.row_tokens = train.tokens, train.row_tokens
        fingerprints = [split.fingerprint for split in (train, validation) if split is not None]
        self.manifest: PlainDict = {
            "corpus": {"fingerprint": hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()},
            "tokenizer": self._describe(tokenizer),
        }

    def _describe(self, tokenizer: Tokenizer | None) -> PlainDict:
        """The manifest record of the tokenizer; without one, with the number of ids that the data has, if known."""
        if tokenizer is not None:
            return tokenizer.describe()
        ids = [split.array for split in (self.train, self.validation) if isinstance(split, TokensInMemory)]
        return {"vocab_size": max((int(array.max()) + 1 for array in ids if array.size), default=0), "fingerprint": ""}

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise a DataError for ids beyond a model's vocabulary; ids of rows are checked when they are read."""
        record = self.manifest["tokenizer"]
        if "name" not in record and record["vocab_size"] > vocab_size:
            raise DataError(
                f"the data has the id {record['vocab_size'] - 1}, but the model's ids run from 0 to {vocab_size - 1}:"
                f" give the model vocab_size={record['vocab_size']} or more"
            )
        super().check_vocabulary(vocab_size)

    @property
    def has_windows(self) -> bool:
        """Whether training rows are windows of one text, which may start anywhere."""
        return isinstance(self.train, TokensInMemory)

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> Batches:
        return self.train.batches(block, batch_size, seed, order)

    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        assert world == 1, "data in memory is that of one process"
        return self._validation.evaluation(block, rows, windows)

    def rows_per_epoch(self, block: int) -> int | None:
        return self.train.rows(block)

    def evaluation_windows(self, block: int) -> int:
        return self._validation.rows(block) or 0

    def check_evaluation(self, block: int, windows: int) -> None:
        if self.validation is not None:
            self.validation.check_evaluation(block, windows)

    def beginning(self, windows: int, block: int) -> Batch:
        return next(self._validation.evaluation(block, windows, windows))

    def prompt(self, tokens: int) -> list[int]:
        split = self.train if self.validation is None else self.validation
        if isinstance(split, TokensInMemory):
            ids: list[int] = split.array[:tokens].tolist()
            return ids
        raise ConfigError("rows have no beginning that a sample continues: give sample_prompt, or sample_tokens=0")

    def sizes(self) -> str:
        held_out = "none" if self.validation is None else self.validation.size()
        return f"{self.train.size()} to train on, {held_out} to validate"

    def bits_per_byte(self, loss: float) -> float | None:
        return self._validation.bits_per_byte(loss)

    @property
    def _validation(self) -> Split:
        assert self.validation is not None, "there is no validation data"
        return self.validation


def padded(rows: Sequence[tuple[Tensor, Tensor]], ignored: int) -> Batch:
    """Rows of different lengths as a batch: inputs (B, T) padded with 0, and targets (B, T) with ``ignored``."""
    ids, targets = ([row[index] for row in rows] for index in (0, 1))
    inputs = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
    return inputs, torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=ignored)
