"""Synthetic tasks as a corpus: new random rows at every step, with targets where the answer is known."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig, decode
from modular_gpt.core.targets import IGNORED
from modular_gpt.core.validation import at_most, one_of, positive
from modular_gpt.data.batches import check_share
from modular_gpt.data.corpora.base import Corpus, TextChunk
from modular_gpt.data.prepared import Batch, PreparedData
from modular_gpt.data.synthetic_tasks import TASKS, Draws, TaskSizes
from modular_gpt.data.tokenizers.base import Tokenizer

ROWS_FORMAT = 1  # version of the generated rows, a component of the fingerprint
TRAIN, VALIDATION = 0, 1  # streams of random numbers
LARGEST = {"vocab_size": 2**16, "pairs": 2**12, "lag": 2**16, "validation_samples": 2**20}


class Synthetic(Corpus, name="synthetic"):
    """Diagnostic tasks of random ids whose answer is known: data.task=mqar, lag, copy or needle."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a synthetic task. The length of a row is model_size.context_length.

        task: The task: mqar (recall the values of keys), lag (repeat the id lag places earlier), copy (repeat
            the first half of the row) or needle (recall one value that is hidden in noise).
        vocab_size: Number of ids.
        pairs: Number of pairs of a key and its value in a row of mqar and needle.
        lag: Distance in tokens between a target and the id that it repeats, in the task lag.
        validation_samples: Number of rows to validate on. They are the same in every run.
        """

        task: str = "mqar"
        vocab_size: int = 128
        pairs: int = 8
        lag: int = 8
        validation_samples: int = 512

        def __post_init__(self) -> None:
            one_of(self.task, tuple(TASKS), "data.task")
            positive("data", **{name: getattr(self, name) for name in LARGEST})
            at_most("data", LARGEST, self)
            needed = TASKS[self.task].smallest(self.sizes)
            if self.vocab_size < needed:
                raise ConfigError(
                    f"data.task={self.task} with data.pairs={self.pairs} needs data.vocab_size={needed} or more,"
                    f" got {self.vocab_size}"
                )

        @property
        def sizes(self) -> TaskSizes:
            return TaskSizes(self.vocab_size, self.pairs, self.lag)

    def __init__(self, config: ComponentConfig) -> None:
        assert isinstance(config, Synthetic.Config)
        self.config = config

    @classmethod
    def tokenizer_config(cls, config: Any, tokenizer: ComponentConfig) -> ComponentConfig:
        """``tokenizer=ids`` with the task's number of ids, in place of the default, ``byte``.

        Raises:
            ConfigError: a tokenizer of text is chosen.
        """
        if tokenizer.name not in ("ids", "byte"):
            raise ConfigError(f"data=synthetic is made of ids and no text: leave out tokenizer={tokenizer.name}")
        return decode("tokenizer", {"name": "ids", "vocab_size": config.vocab_size})

    def documents(self, split: str) -> Iterator[TextChunk]:
        raise DataError("data=synthetic has ids and no text: use another corpus where text is needed")

    def prepare(self, tokenizer: Tokenizer, cache_dir: str | Path | None = None) -> "SyntheticData":
        """The data of the task; its rows are computed when they are read, and no file is written.

        Raises:
            ConfigError: the tokenizer has another number of ids than the task.
        """
        if tokenizer.vocab_size != self.config.vocab_size:
            raise ConfigError(
                f"data.vocab_size={self.config.vocab_size}, but the tokenizer has {tokenizer.vocab_size} ids:"
                " give both the same number"
            )
        return SyntheticData(self, tokenizer)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([ROWS_FORMAT, self.describe()], sort_keys=True).encode()).hexdigest()

    def describe(self) -> Mapping[str, int | str]:
        return asdict(self.config)


class SyntheticData(PreparedData):
    """Rows of a synthetic task; accuracy is the fraction of targets that are the model's most likely token."""

    everything: ClassVar[str] = "all validation rows"
    measures_accuracy: ClassVar[bool] = True

    def __init__(self, corpus: Synthetic, tokenizer: Tokenizer) -> None:
        self.config = corpus.config
        self.manifest: PlainDict = {
            "corpus": {**corpus.describe(), "fingerprint": corpus.fingerprint},
            "tokenizer": tokenizer.describe(),
        }

    def batches(self, block: int, batch_size: int, seed: int, order: str) -> "SyntheticBatches":
        if order != "random":
            raise ConfigError(
                f"data=synthetic makes new rows at every step and has no epochs: leave out trainer.order={order}"
            )
        return SyntheticBatches(self.config, block, batch_size, seed, TRAIN)

    def evaluation(self, block: int, rows: int, windows: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """As ``PreparedData.evaluation``; row i depends on i alone, and so the loss not on the batch size."""
        windows = windows or self.config.validation_samples
        source, share = SyntheticBatches(self.config, block, rows, 0, VALIDATION), rows // world
        for number in range(math.ceil(windows / rows)):
            x, y = source.batch(number, rank, world)
            y[max(0, windows - number * rows - rank * share) :] = IGNORED
            yield x, y

    def evaluation_windows(self, block: int) -> int:
        return self.config.validation_samples

    def check_evaluation(self, block: int, windows: int) -> None:
        """Never raises an error: the number of rows is not limited."""

    def beginning(self, windows: int, block: int) -> Batch:
        return next(self.evaluation(block, windows, windows))

    def prompt(self, tokens: int) -> list[int]:
        shortest = TASKS[self.config.task].shortest(self.config.sizes)
        ids, _ = self.beginning(1, max(tokens, shortest))
        out: list[int] = ids[0, :tokens].tolist()
        return out

    def sizes(self) -> str:
        return f"new rows of the task {self.config.task} at every step, {self.config.validation_samples:,} to validate"


class SyntheticBatches:
    """The rows of each training step, computed from the seed and the numbers of the samples."""

    def __init__(self, config: Synthetic.Config, block: int, batch_size: int, seed: int, stream: int) -> None:
        """Rows of ``block`` tokens; ``stream``: ``TRAIN`` or ``VALIDATION``.

        Raises:
            DataError: the task does not fit into ``block`` tokens.
        """
        positive("batches", context_length=block, batch_size=batch_size)
        self.task, self.sizes = TASKS[config.task], config.sizes
        needed = self.task.shortest(self.sizes)
        if block < needed:
            raise DataError(
                f"data.task={config.task} needs rows of {needed} tokens, but the context_length is {block}:"
                f" set model_size.context_length={needed} or more, or lower data.pairs or data.lag"
            )
        self.block, self.batch_size, self.seed, self.stream = block, batch_size, seed, stream

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Inputs and targets, each (batch_size / world, block) int64: the rows of one process of ``world``.

        Raises:
            ConfigError: the processes do not divide the batch evenly.
        """
        check_share(self.batch_size, rank, world)
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        draws = Draws(np.arange(first, first + share, dtype=np.uint64), self.seed, self.stream)
        x, y = self.task.rows(draws, self.block, self.sizes)
        return torch.from_numpy(x), torch.from_numpy(y)
