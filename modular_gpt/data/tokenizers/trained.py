"""Subword vocabularies learned from the corpus: byte-pair encoding and WordPiece, both on bytes.

Both first replace each byte of a text by one of GPT-2's 256 printable characters, so that every text can be encoded
and decoding restores it exactly.

BPE: "Neural Machine Translation of Rare Words with Subword Units" (https://arxiv.org/abs/1508.07909).
WordPiece: "Japanese and Korean Voice Search" (Schuster and Nakajima 2012), used by BERT
(https://arxiv.org/abs/1810.04805).
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import positive
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import END_OF_TEXT, Ids, check_size, check_text, training_texts
from modular_gpt.data.tokenizers.byte_level import encode_ordinary, trained_encoding
from modular_gpt.data.tokenizers.library import LibraryTokenizer
from modular_gpt.data.tokenizers.library_checks import library_errors

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

CONTINUES = "…"  # prefix of a subword inside a word, instead of BERT's "##", which is common in source code
LONGEST = 100  # bytes; longer words are cut, since WordPiece encodes them as unknown
BYTES = 256
LONGEST_LEARNED = 1000  # letters, digits or other characters in sequence; BPE training takes minutes for 100,000
_LONG_SPACE = re.compile(rf"\s{{{LONGEST_LEARNED}}}")
_LONG_WORD = re.compile("|".join(f"{characters}{{{LONGEST_LEARNED}}}" for characters in (r"[^\W\d_]", r"\d", r"[\W_]")))
SAMPLE = 2**24  # characters; training on this number takes a few hundred megabytes


class BPETokenizer(LibraryTokenizer, name="bpe"):
    """Byte-pair encoding trained on the corpus (tokenizers library)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a byte-level BPE vocabulary.

        vocab_size: Number of tokens to learn: 256 bytes, the end of text and merges. A small corpus may give fewer.
        sample_characters: Number of characters to learn from, in stretches spread evenly over a longer training text.
            With null, all of it is read, and memory grows with the number of distinct words.
        """

        vocab_size: int = 4096
        sample_characters: int | None = SAMPLE

        def __post_init__(self) -> None:
            check_size("bpe", self.vocab_size, BYTES + 1)
            positive("tokenizer", sample_characters=self.sample_characters)

    learns = True

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, BPETokenizer.Config)
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        with training_texts(corpus, "bpe", config.sample_characters) as texts:
            tokenizer.train_from_iterator(without_long_words(texts), trainer)
        return cls(tokenizer, END_OF_TEXT)

    @cached_property
    def _encoding(self) -> "tiktoken.Encoding | None":
        return trained_encoding(json.loads(self._tokenizer.to_str()), END_OF_TEXT)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        if self._encoding is None:
            return super().encode_many(texts)
        check_text(texts)
        with library_errors("the bpe tokenizer cannot encode this text"):
            return encode_ordinary(self._encoding, texts)


class WordPieceTokenizer(LibraryTokenizer, name="wordpiece"):
    """WordPiece trained on the corpus: the longest known subword first (tokenizers library)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a WordPiece vocabulary.

        vocab_size: Number of tokens to learn: each byte at the start of a word and inside one, the end of text and
            longer tokens. A small corpus may give fewer.
        sample_characters: Number of characters to learn from, in stretches spread evenly over a longer training text.
            With null, all of it is read, and memory grows with the number of distinct words.
        """

        vocab_size: int = 4096
        sample_characters: int | None = SAMPLE

        def __post_init__(self) -> None:
            check_size("wordpiece", self.vocab_size, 2 * BYTES + 1)
            positive("tokenizer", sample_characters=self.sample_characters)

    learns = True

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, WordPieceTokenizer.Config)
        from tokenizers import pre_tokenizers, trainers

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.WordPieceTrainer(
            vocab_size=config.vocab_size,
            # As special tokens, all bytes inside a word are in the vocabulary, whether they occur or not.
            special_tokens=[END_OF_TEXT, *(CONTINUES + byte for byte in alphabet)],
            initial_alphabet=alphabet,
            continuing_subword_prefix=CONTINUES,
            show_progress=False,
        )
        learner = _wordpiece({})
        with training_texts(corpus, "wordpiece", config.sample_characters) as texts:
            learner.train_from_iterator(texts, trainer)
        tokenizer = _wordpiece(learner.get_vocab())  # in which END_OF_TEXT alone becomes a special token
        tokenizer.add_special_tokens([END_OF_TEXT])
        return cls(tokenizer, END_OF_TEXT)


def without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, with long words cut every ``LONGEST_LEARNED`` characters, since BPE training on them takes minutes."""
    for text in texts:
        if max(map(len, text.split()), default=0) < LONGEST_LEARNED and not _LONG_SPACE.search(text):
            yield text
            continue
        start = 0
        for found in _LONG_WORD.finditer(text):
            yield text[start : found.end()]
            start = found.end()
        if start < len(text):
            yield text[start:]


def _wordpiece(vocab: dict[str, int]) -> "tokenizers.Tokenizer":
    """A tokenizer of the library around a vocabulary of subwords."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    model = models.WordPiece(
        vocab, unk_token=END_OF_TEXT, max_input_chars_per_word=LONGEST, continuing_subword_prefix=CONTINUES
    )
    tokenizer = Tokenizer(model)
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    short = pre_tokenizers.Split(Regex(f".{{1,{LONGEST}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, short])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(CONTINUES, ""), decoders.ByteLevel()])
    return tokenizer
