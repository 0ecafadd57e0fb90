"""OpenAI's byte-pair encodings by name, through tiktoken (https://github.com/openai/tiktoken).

GPT-2's is described in "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019).
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from modular_gpt.core.errors import ConfigError, DataError, unknown
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig, Preset
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.base import END_OF_TEXT, Ids, Tokenizer, check_text
from modular_gpt.data.tokenizers.byte_level import encode_ordinary
from modular_gpt.data.tokenizers.library_checks import check_ranks, library_errors
from modular_gpt.data.tokenizers.streaming import ByteStream, StreamDecoder


def _preset(encoding: str, summary: str) -> Preset:
    return Preset(summary, {"encoding": encoding})


PRESETS = {
    "gpt2": _preset("gpt2", "GPT-2's byte-pair encoding, 50,257 ids (tiktoken)."),
    "r50k_base": _preset("r50k_base", "GPT-3's byte-pair encoding, 50,257 ids (tiktoken)."),
    "p50k_base": _preset("p50k_base", "Codex's byte-pair encoding, 50,281 ids (tiktoken)."),
    "cl100k_base": _preset("cl100k_base", "GPT-4's byte-pair encoding, 100,277 ids (tiktoken)."),
    "o200k_base": _preset("o200k_base", "GPT-4o's byte-pair encoding, 200,019 ids (tiktoken)."),
}


class TiktokenTokenizer(Tokenizer, name="tiktoken", presets=PRESETS):
    """Any tiktoken encoding by name; downloaded once, then saved with the model."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a tiktoken encoding.

        encoding: Name of an encoding of tiktoken, such as gpt2 or o200k_harmony.
        """

        encoding: str = "gpt2"

    def __init__(self, encoding: str, pattern: str, ranks: dict[bytes, int], special: dict[str, int]) -> None:
        import tiktoken

        check_ranks(ranks, special)
        self._tables = (encoding, pattern, ranks, special)
        with library_errors("tiktoken cannot use the encoding"):
            self._encoding = tiktoken.Encoding(encoding, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        self.vocab_size = self._encoding.n_vocab
        self.eos_id = special.get(END_OF_TEXT)

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, TiktokenTokenizer.Config)
        import tiktoken

        known = tiktoken.list_encoding_names()
        if config.encoding not in known:
            raise ConfigError(unknown("tiktoken encoding", config.encoding, known))
        try:
            found = tiktoken.get_encoding(config.encoding)
        except (OSError, ValueError) as error:  # no network; or a download whose hash is wrong
            raise DataError(
                f"cannot fetch tiktoken encoding {config.encoding!r} ({type(error).__name__}): run once with"
                " network access, or set TIKTOKEN_CACHE_DIR to a directory that has its files"
            ) from error
        return cls(found.name, found._pat_str, found._mergeable_ranks, found._special_tokens)

    @classmethod
    def from_definition(cls, definition: PlainDict) -> Self:
        ranks = {base64.b64decode(token, validate=True): rank for token, rank in definition["ranks"].items()}
        return cls(definition["encoding"], definition["pattern"], ranks, definition["special"])

    def definition(self) -> PlainDict:
        encoding, pattern, ranks, special = self._tables
        encoded = {base64.b64encode(token).decode(): rank for token, rank in ranks.items()}
        return {"encoding": encoding, "pattern": pattern, "ranks": encoded, "special": special}

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        check_text(texts)
        with library_errors(f"the {self._encoding.name} encoding cannot encode this text"):
            return encode_ordinary(self._encoding, texts)

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._tables[3]

    def _gaps(self) -> Iterable[int]:
        _, _, ranks, special = self._tables
        return set(range(self.vocab_size)).difference(ranks.values(), special.values())

    def _decode(self, ids: list[int]) -> str:
        return b"".join(map(self._encoding.decode_single_token_bytes, ids)).decode(errors="replace")

    def decode_stream(self) -> StreamDecoder:
        return ByteStream(self._encoding.decode_single_token_bytes, self.has_text)
