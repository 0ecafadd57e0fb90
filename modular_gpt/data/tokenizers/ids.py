"""Ids written as numbers: the tokenizer of data of ids without text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import MAX_VOCAB_SIZE, Ids, Tokenizer


class IdTokenizer(Tokenizer, name="ids"):
    """Ids as decimal numbers with spaces between them; for data of ids, such as data=synthetic."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of ids written as numbers.

        vocab_size: Number of ids.
        """

        vocab_size: int = 256

        def __post_init__(self) -> None:
            if not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
                raise ConfigError(f"tokenizer.vocab_size must be from 1 to {MAX_VOCAB_SIZE:,}, got {self.vocab_size}")

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, IdTokenizer.Config)
        return cls(config.vocab_size)

    @classmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        return cls(int(definition["vocab_size"]))

    def definition(self) -> PlainDict:
        return {"vocab_size": self.vocab_size}

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        return [np.array([self._id(number) for number in text.split()], dtype=np.int64) for text in texts]

    def _id(self, number: str) -> int:
        if number.isascii() and number.isdigit() and len(number) < 20 and int(number) < self.vocab_size:
            return int(number)
        raise DataError(f"{number!r} is no id: this text is made of numbers from 0 to {self.vocab_size - 1}")

    def _decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))
