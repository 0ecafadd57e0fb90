"""Tokenizers that come with a pretrained model, from its ``tokenizer.json`` (Hugging Face's format)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.data.corpora.base import Corpus
from modular_gpt.data.tokenizers.library import LibraryTokenizer


class HuggingFaceTokenizer(LibraryTokenizer, name="hf"):
    """A tokenizer.json file of a Hugging Face model: tokenizer.path=<file or directory>."""

    @dataclass
    class Config(ComponentConfig):
        """Which file.

        path: a ``tokenizer.json``, or a directory that has one
        eos: token that ends a text; ``eos_token`` of the ``tokenizer_config.json`` beside it unless given
        """

        path: str = ""
        eos: str | None = None

    @classmethod
    def build(cls, config: ComponentConfig, corpus: Corpus | None) -> Self:
        assert isinstance(config, HuggingFaceTokenizer.Config)
        if not config.path:
            raise ConfigError("tokenizer=hf needs tokenizer.path=<a tokenizer.json, or a directory with one>")
        path = Path(config.path).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        import tokenizers

        try:
            tokenizer = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"cannot read '{path}' ({error.strerror}): correct tokenizer.path") from error
        except Exception as error:  # the library raises the bare class
            remedy = "correct tokenizer.path"
            raise DataError(f"'{path}' is no tokenizer.json of Hugging Face ({error}): {remedy}") from error
        eos = config.eos or _eos_beside(path)
        if eos is not None and tokenizer.token_to_id(eos) is None:
            raise ConfigError(f"tokenizer.eos: the token {eos!r} is not in the vocabulary of '{path}'")
        return cls(tokenizer, eos)


def _eos_beside(path: Path) -> str | None:
    """The end-of-text token named in the ``tokenizer_config.json`` beside a tokenizer, if there is one."""
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        return None
    try:
        token: Any = json.loads(beside.read_text(encoding="utf-8")).get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"'{beside}' cannot be read ({error}): set tokenizer.eos") from error
    return token["content"] if isinstance(token, dict) else token
