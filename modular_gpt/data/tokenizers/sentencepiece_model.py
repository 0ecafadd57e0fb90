"""SentencePiece trained on the corpus, through the package of that name (https://arxiv.org/abs/1808.06226)."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Self

import numpy as np

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import one_of, positive
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import Ids, Tokenizer, check_size, check_text, training_texts

LINE = 4096  # characters
# Settings with which decoding restores the text: rare characters as bytes, no normalisation, no added spaces.
TRAINER: PlainDict = {
    "hard_vocab_limit": False,  # a small corpus may give fewer tokens
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "user_defined_symbols": ["\n"],
    "allow_whitespace_only_pieces": True,  # indentation
    "max_sentence_length": 4 * LINE,
    "unk_id": 0,
    "eos_id": 1,
    "bos_id": -1,
    "pad_id": -1,
    "minloglevel": 2,
}


def _package() -> ModuleType:
    try:
        import sentencepiece
    except ImportError as error:
        remedy = "pip install 'modular-gpt[sentencepiece]'"
        raise ConfigError(f"tokenizer=sentencepiece needs the package 'sentencepiece': {remedy}") from error
    return sentencepiece


class SentencePieceTokenizer(Tokenizer, name="sentencepiece"):
    """SentencePiece (unigram or BPE) trained on the corpus; needs the package 'sentencepiece'.

    Decoding restores the text, except for U+2581, which the library uses for the space.
    """

    @dataclass
    class Config(ComponentConfig):
        """Settings of a SentencePiece vocabulary.

        vocab_size: Number of tokens to learn: 256 bytes, 2 special tokens, the characters of the corpus and longer
            tokens.
        algorithm: The algorithm that learns the vocabulary, unigram or bpe.
        sample_characters: Number of characters to learn from, in stretches spread evenly over a longer training text.
            With null, all of it is read into memory.
        """

        vocab_size: int = 4096
        algorithm: str = "unigram"
        sample_characters: int | None = 2**24

        def __post_init__(self) -> None:
            check_size("sentencepiece", self.vocab_size, 1)
            one_of(self.algorithm, ("unigram", "bpe"), "tokenizer.algorithm")
            positive("tokenizer", sample_characters=self.sample_characters)

    learns = True

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor = _package().SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._processor.get_piece_size()
        self.eos_id = self._processor.eos_id()

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, SentencePieceTokenizer.Config)
        package, model = _package(), io.BytesIO()
        try:
            with training_texts(corpus, "sentencepiece", config.sample_characters) as texts:
                package.SentencePieceTrainer.train(
                    sentence_iterator=_lines(texts),
                    model_writer=model,
                    vocab_size=config.vocab_size,
                    model_type=config.algorithm,
                    **TRAINER,
                )
        except RuntimeError as error:
            raise ConfigError(f"tokenizer.vocab_size={config.vocab_size} does not fit the corpus: {error}") from error
        return cls(model.getvalue())

    @classmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        return cls(base64.b64decode(definition["model"], validate=True))

    def definition(self) -> PlainDict:
        return {"model": base64.b64encode(self._model).decode()}

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        check_text(texts)
        return [np.array(ids, dtype=np.int64) for ids in self._processor.encode(list(texts))]

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        control = filter(self._processor.is_control, range(self.vocab_size))
        return {self._processor.id_to_piece(id): id for id in control}

    def _decode(self, ids: list[int]) -> str:
        out: str = self._processor.decode(ids)
        return out


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The lines of the training text, which the library takes as sentences; long lines are cut."""
    for text in texts:
        for line in text.splitlines(keepends=True):
            yield from (line[start : start + LINE] for start in range(0, len(line), LINE))
