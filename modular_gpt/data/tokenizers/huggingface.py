"""Tokenizers of published models: ``tokenizer.json`` (Hugging Face's format), or GPT-2's vocab.json and merges.txt."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.json_files import load_json_object, read_regular
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.core.validation import expand_home
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.templates import SpecialTexts
from modular_gpt.data.tokenizers.base import END_OF_TEXT, FILE
from modular_gpt.data.tokenizers.chat_template_files import read_chat_template
from modular_gpt.data.tokenizers.library import LibraryTokenizer
from modular_gpt.data.tokenizers.special_tokens import (
    TOKENIZER_CONFIG,
    SpecialTokens,
    read_special_tokens,
)

VOCAB, MERGES = "vocab.json", "merges.txt"
MAX_BYTES = 256 * 2**20  # of a tokenizer file
REMEDY = "correct tokenizer.path"
# Tokenizers that split text as GPT-2 does. Others have these two files too, which do not define how they split.
GPT2_LIKE = {"GPT2Tokenizer", "GPT2TokenizerFast", "gpt2", "gpt_neo", "gptj"}


class HuggingFaceTokenizer(LibraryTokenizer, name="hf"):
    """A tokenizer.json file of a Hugging Face model: tokenizer.path=<file or directory>."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a tokenizer.json.

        path: A tokenizer.json, a directory that contains one, or a directory with GPT-2's vocab.json and merges.txt.
        eos: The token that ends a text. By default (null) it is read from the tokenizer_config.json in the same
            directory.
        """

        path: str = ""
        eos: str | None = None

        def __post_init__(self) -> None:
            expand_home(self, "path")

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, HuggingFaceTokenizer.Config)
        if not config.path:
            raise ConfigError("tokenizer=hf needs tokenizer.path=<a tokenizer.json, or a directory with one>")
        path = _file(Path(config.path))
        content = _gpt2_json(path) if path.name == VOCAB else _read(path)
        special = read_special_tokens(path, content.get("post_processor"))
        try:
            plain = cls.from_json(content, SpecialTokens())
        except ValueError as error:
            raise DataError(f"'{path}' is no tokenizer.json of Hugging Face ({error}): {REMEDY}") from error
        found = cls(plain._tokenizer, *plain._resolved(replace(special, eos=config.eos or special.eos), path))
        return found.with_template(read_chat_template(path, SpecialTexts.of(found)))

    def _resolved(self, special: SpecialTokens, path: Path) -> tuple[str | None, str | None, list[int]]:
        """The EOS token, the BOS token and further end ids, after checking that they are in the vocabulary.

        Raises:
            ConfigError: the EOS token is not in the vocabulary.
            DataError: the BOS token is not in the vocabulary.
        """
        for token, setting in ((special.eos, "eos"), (special.bos, "bos")):
            if token is not None and self._tokenizer.token_to_id(token) is None:
                where = f"is not in the vocabulary of '{path}'"
                if setting == "eos":
                    raise ConfigError(f"tokenizer.eos: the token {token!r} {where}")
                raise DataError(f"the token {token!r}, which begins a text, {where}: correct {TOKENIZER_CONFIG}")
        ends = [id for id in special.end_ids if self.has_text(id)]
        eos = self._tokenizer.id_to_token(ends[0]) if special.eos is None and ends else special.eos
        return eos, special.bos, ends


def _file(path: Path) -> Path:
    """The tokenizer file of a path: of a directory, its tokenizer.json or else its vocab.json."""
    if not path.is_dir():
        return path
    files = {name: path / name for name in (FILE, VOCAB, MERGES)}
    if not files[FILE].exists() and files[VOCAB].is_file() and files[MERGES].is_file():
        return files[VOCAB]
    return files[FILE]


def _read(path: Path) -> PlainDict:
    try:
        return load_json_object(path, MAX_BYTES, remedy=REMEDY)
    except FileNotFoundError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror}): {REMEDY}") from error


def _gpt2_json(path: Path) -> PlainDict:
    """The library's JSON for the vocabulary and merges of GPT-2's byte-pair encoding.

    Raises:
        DataError: a file cannot be read, or the files beside it name another tokenizer class.
    """
    model, settings = (
        load_json_object(beside, remedy="correct or remove it") if beside.is_file() else {}
        for beside in (path.with_name("config.json"), path.with_name(TOKENIZER_CONFIG))
    )
    tokenizer_class = settings.get("tokenizer_class") or model.get("model_type") or "gpt2"
    if tokenizer_class not in GPT2_LIKE:
        raise DataError(
            f"'{path}' belongs to a {tokenizer_class!r:.60} tokenizer, and how that splits a text is not in"
            f" {VOCAB} and {MERGES}: add its {FILE}"
        )
    vocab = _read(path)
    try:
        lines = read_regular(path.with_name(MERGES), MAX_BYTES).decode().split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"'{path.with_name(MERGES)}' cannot be read ({error}): {REMEDY}") from error
    merges = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    spaces = bool(settings.get("add_prefix_space"))
    byte_level = {"type": "ByteLevel", "add_prefix_space": spaces, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, **special}] if END_OF_TEXT in vocab else []
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
