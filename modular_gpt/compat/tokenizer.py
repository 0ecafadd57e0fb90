"""A tokenizer of characters that is made first and learns its vocabulary afterwards."""

from collections.abc import Iterable

from modular_gpt.core.errors import ConfigError
from modular_gpt.data import CharTokenizer

SPECIAL = ("<bos>", "<eos>", "<pad>")  # behind the characters and the token of unknown ones


class SimpleTokenizer:
    """Characters as tokens, with tokens for unknown ones, and for the beginning, the end and the padding of a text.

    tokenizer: the ``CharTokenizer`` beneath, which ``fit`` and ``model.tokenizer`` take
    """

    def __init__(self) -> None:
        self._tokenizer: CharTokenizer | None = None

    @property
    def tokenizer(self) -> CharTokenizer:
        if self._tokenizer is None:
            raise ConfigError("this tokenizer has no vocabulary yet: call build_vocab(text) first")
        return self._tokenizer

    def build_vocab(self, text: str) -> int:
        """Take the characters of a text as the vocabulary; returns the number of ids, special tokens included."""
        self._tokenizer = CharTokenizer.build_vocab(text, unknown="unk")
        return self.vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
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
        """The ids of a text, between those of its beginning and its end unless ``add_special_tokens`` is False."""
        ids = self.tokenizer.encode(text)
        return [self.bos_id, *ids, self.eos_id] if add_special_tokens else ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids; special tokens are left out, or written by their names."""
        names = dict(enumerate(SPECIAL, self.tokenizer.vocab_size))
        shown = {} if skip_special_tokens else names
        return "".join(shown.get(id, "") if id in names else self.tokenizer.decode([id]) for id in map(int, ids))
