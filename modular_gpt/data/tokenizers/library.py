"""What all kinds share that run on the ``tokenizers`` library (https://github.com/huggingface/tokenizers)."""

import json
from abc import ABC
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from modular_gpt.data.tokenizers.base import Ids, Tokenizer, check_text

if TYPE_CHECKING:
    import tokenizers


class LibraryTokenizer(Tokenizer, ABC):
    """A tokenizer of the ``tokenizers`` library, defined by the JSON of that library.

    eos: the token that stands between documents, or None
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", eos: str | None) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._eos = eos
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        self.eos_id = None if eos is None else tokenizer.token_to_id(eos)

    @classmethod
    def from_definition(cls, definition: dict[str, Any]) -> Self:
        import tokenizers

        return cls(tokenizers.Tokenizer.from_str(json.dumps(definition["tokenizer"])), definition["eos"])

    def definition(self) -> dict[str, Any]:
        return {"tokenizer": json.loads(self._tokenizer.to_str()), "eos": self._eos}

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        check_text(texts)
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def _gaps(self) -> Iterable[int]:
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return set(range(self.vocab_size)).difference(known)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)
