"""A character tokenizer whose vocabulary is built after its construction."""

from collections.abc import Iterable

from modular_gpt.core.errors import ConfigError
from modular_gpt.data import CharTokenizer

SPECIAL = ("<bos>", "<eos>", "<pad>")  # their ids follow those of the characters and of the unknown token


class SimpleTokenizer:
    """Character tokenizer with an unknown token and tokens for the beginning, the end and the padding of a text.

    tokenizer: the underlying ``CharTokenizer``, for ``fit`` and ``model.tokenizer``
    """

    def __init__(self) -> None:
        self._tokenizer: CharTokenizer | None = None

    @property
    def tokenizer(self) -> CharTokenizer:
        if self._tokenizer is None:
            raise ConfigError("this tokenizer has no vocabulary yet: call build_vocab(text) first")
        return self._tokenizer

    def build_vocab(self, text: str) -> int:
        """Build the vocabulary from the characters of a text; returns the number of ids, special tokens included."""
        self._tokenizer = CharTokenizer.build_vocab(text, unknown="unk")
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.tokenizer.vocab_size + len(SPECIAL)

    @property
    def bos_id(self) -> int:
        """The id that begins a text."""
        return self.tokenizer.vocab_size

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return self.tokenizer.vocab_size + 1

    @property
    def pad_id(self) -> int:
        """The id that fills up a batch."""
        return self.tokenizer.vocab_size + 2

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode a text; ``bos_id`` and ``eos_id`` are added unless ``add_special_tokens`` is False."""
        ids = self.tokenizer.encode(text)
        return [self.bos_id, *ids, self.eos_id] if add_special_tokens else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Decode ids; special tokens are skipped, or decoded to their names if ``skip_special_tokens`` is False."""
        names = dict(enumerate(SPECIAL, self.tokenizer.vocab_size))
        texts = dict.fromkeys(names, "") if skip_special_tokens else names
        return "".join(texts[id] if id in texts else self.tokenizer.decode([id]) for id in map(int, ids))
