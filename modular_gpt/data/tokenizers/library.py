"""Base of the tokenizers that run on the ``tokenizers`` library (https://github.com/huggingface/tokenizers)."""

import json
from abc import ABC
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.stream_decoder import StreamDecoder
from modular_gpt.data.tokenizers.base import Ids, Tokenizer, check_text
from modular_gpt.data.tokenizers.library_checks import check_library_json, library_errors
from modular_gpt.data.tokenizers.special_tokens import SpecialTokens
from modular_gpt.data.tokenizers.streaming import TextStream

if TYPE_CHECKING:
    import tokenizers


class LibraryTokenizer(Tokenizer, ABC):
    """A tokenizer of the ``tokenizers`` library, defined by the JSON of that library."""

    def __init__(
        self, tokenizer: "tokenizers.Tokenizer", eos: str | None, bos: str | None = None, end_ids: Iterable[int] = ()
    ) -> None:
        """eos: token between documents; bos: token that begins a text; None: there is none

        end_ids: further ids that end a text; ids without a token are left out
        """
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._eos, self._bos = eos, bos
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # ids may have gaps
        self.eos_id = None if eos is None else tokenizer.token_to_id(eos)
        self.bos_id = None if bos is None else tokenizer.token_to_id(bos)
        self._end_ids = tuple(id for id in dict.fromkeys(end_ids) if self.has_text(id) and id != self.eos_id)

    @classmethod
    def from_json(cls, content: PlainMapping, special: SpecialTokens) -> Self:
        """A tokenizer from the library's own JSON.

        Raises:
            ValueError: the JSON has values with which the library would panic, abort or never end.
            DataError: the library cannot use it.
        """
        import tokenizers

        check_library_json(content)
        with library_errors("the tokenizers library cannot use it"):
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
            return cls(tokenizer, special.eos, special.bos, special.end_ids)

    @classmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        special = SpecialTokens(definition.get("bos"), definition["eos"], tuple(definition.get("end_ids", ())))
        return cls.from_json(definition["tokenizer"], special)

    def definition(self) -> PlainDict:
        # Keys without a value are left out, so that older definitions keep their fingerprints.
        optional = {"bos": self._bos, "end_ids": list(self._end_ids)}
        given = {name: value for name, value in optional.items() if value}
        return {"tokenizer": json.loads(self._tokenizer.to_str()), "eos": self._eos, **given}

    def for_new_model(self) -> Tokenizer:
        return type(self)(self._tokenizer, self._eos)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        check_text(texts)
        with library_errors(f"the {self.name} tokenizer cannot encode this text"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special and token.content}

    @cached_property
    def _parsing(self) -> "tokenizers.Tokenizer":
        """A copy of the library's tokenizer that recognises special tokens spelled in a text."""
        import tokenizers

        return tokenizers.Tokenizer.from_str(self._tokenizer.to_str())

    def _encode_special(self, text: str) -> list[int]:
        check_text([text])
        with library_errors(f"the {self.name} tokenizer cannot encode this text"):
            ids: list[int] = self._parsing.encode(text, add_special_tokens=False).ids
        return ids

    def encode_stretch(self, text: str, first: bool) -> list[int]:
        ids = self.encode(text) if text else []
        if first or not ids:
            return ids
        # Some tokenizers add a space before a text, but not after a line feed.
        line_feed, with_line_feed = self.encode("\n"), self.encode(f"\n{text}")
        separate = with_line_feed[: len(line_feed)] == line_feed
        return with_line_feed[len(line_feed) :] if separate else ids

    def _gaps(self) -> Iterable[int]:
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return set(range(self.vocab_size)).difference(known)

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        """The ids of single bytes, which encode characters without an id."""
        found = (self._tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(id for id in found if id is not None)

    def decode_stream(self) -> StreamDecoder:
        return TextStream(self._decode, self.has_text, self._byte_ids.__contains__)

    def _decode(self, ids: list[int]) -> str:
        with library_errors(f"the {self.name} tokenizer cannot decode these ids"):
            return self._tokenizer.decode(ids, skip_special_tokens=False)
