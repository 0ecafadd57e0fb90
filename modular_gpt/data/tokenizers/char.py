"""Characters as tokens, with the characters of one corpus as the vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import one_of
from modular_gpt.data.corpora.base import SPLITS, Corpus
from modular_gpt.data.tokenizers.base import Ids, Tokenizer, check_text, require_corpus

UNKNOWN = "<unk>"
UNKNOWN_CHOICES = ("error", "unk")


class CharTokenizer(Tokenizer, name="char"):
    """The characters that occur in the corpus, in code point order."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of the character tokenizer.

        unknown: Handling of characters that the corpus does not contain: error names the character and stops; unk
            encodes it as an extra token <unk>.
        characters: The characters of the vocabulary. By default (null) those that the corpus contains.
        """

        unknown: str = "error"
        characters: str | None = None

        def __post_init__(self) -> None:
            one_of(self.unknown, UNKNOWN_CHOICES, "tokenizer.unknown")
            if self.characters == "":
                raise ConfigError("tokenizer.characters is empty: give the characters, or leave it out")

    learns = True

    def __init__(self, characters: str, unknown: str = "error") -> None:
        """characters: any text, whose distinct characters are the vocabulary; unknown: as in ``Config``

        Raises:
            ConfigError: ``unknown`` is not a choice.
        """
        one_of(unknown, UNKNOWN_CHOICES, "tokenizer.unknown")
        self.characters = characters = "".join(sorted(set(characters)))
        self.unknown = unknown
        self._tokens = [*characters, UNKNOWN] if unknown == "unk" else list(characters)
        self.vocab_size = len(self._tokens)
        codes = _codes(characters)
        # The id of each code point, -1 where it has none.
        self._ids = np.full(int(codes.max(initial=0)) + 1, -1, dtype=np.int32)
        self._ids[codes] = np.arange(len(codes), dtype=np.int32)

    @classmethod
    def build_vocab(cls, texts: str | Iterable[str], unknown: str = "error") -> Self:
        """A tokenizer whose vocabulary is the characters of one text or of several."""
        found: set[str] = set()
        for text in [texts] if isinstance(texts, str) else texts:
            found.update(text)
        return cls("".join(found), unknown)

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, CharTokenizer.Config)
        if config.characters is not None:
            return cls(config.characters, config.unknown)
        source = require_corpus(corpus, "char")
        # The validation text is read, too, but for its alphabet only.
        chunks = (chunk for split in SPLITS for chunk in source.documents(split))
        return cls.build_vocab((chunk.text for chunk in chunks), config.unknown)

    @classmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        if definition["unknown"] not in UNKNOWN_CHOICES:
            raise ValueError(f"unknown is {definition['unknown']!r}")
        return cls(definition["characters"], definition["unknown"])

    def definition(self) -> PlainDict:
        return {"characters": self.characters, "unknown": self.unknown}

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        check_text(texts)
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Ids:
        codes = _codes(text)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        ids[codes >= len(self._ids)] = -1
        if self.unknown == "unk":
            ids[ids < 0] = self.vocab_size - 1
        elif len(unknown := np.flatnonzero(ids < 0)):
            at = int(unknown[0])
            raise DataError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not among the"
                f" {self.vocab_size} that this char tokenizer knows: leave it out, or train with"
                " tokenizer.unknown=unk"
            )
        out: Ids = ids
        return out

    def _decode(self, ids: list[int]) -> str:
        return "".join(map(self._tokens.__getitem__, ids))


def _codes(text: str) -> np.ndarray:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
