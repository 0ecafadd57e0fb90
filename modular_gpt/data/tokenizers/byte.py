"""Bytes as tokens: every text can be encoded, and no vocabulary is learned."""

from collections.abc import Sequence
from typing import Self

import numpy as np

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import Ids, Tokenizer, check_text
from modular_gpt.data.tokenizers.streaming import ByteStream, StreamDecoder


class ByteTokenizer(Tokenizer, name="byte"):
    """The 256 bytes of UTF-8, which encode any text."""

    vocab_size = 256

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        return cls()

    @classmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        return cls()

    def definition(self) -> PlainDict:
        return {}

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        check_text(texts)
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def decode_stream(self) -> StreamDecoder:
        return ByteStream(lambda id: bytes([id]), self.has_text)
