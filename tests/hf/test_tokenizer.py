"""Tokenizers of this package written for transformers give equal ids and equal decoded text."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from modular_gpt import ConfigError
from modular_gpt.data import CharTokenizer, Tokenizer, build_corpus, build_tokenizer
from modular_gpt.hf import to_transformers

TEXTS = [
    "Hello, world!\n",
    "  two  spaces\t\r\n\n",
    "naïve 日本語 🙂🏽 don't I'LL 12345",
    "",
    "<|endoftext|> is text",
    "a\u00a0b",
]


@pytest.fixture(params=["byte", "char", "char with unk", "bpe", "wordpiece", "gpt2", "cl100k"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    name = request.param
    if name in ("gpt2", "cl100k"):
        request.getfixturevalue("tiktoken_cache")
        if name == "cl100k":  # its pattern with GPT-2's ranks
            from modular_gpt.data.tokenizers.tiktoken_encoding import TiktokenTokenizer

            pattern = (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
                r"|\s*[\r\n]|\s+(?!\S)|\s"
            )
            definition = {**build_tokenizer("gpt2").definition(), "encoding": "other", "pattern": pattern}
            return TiktokenTokenizer.from_definition(definition)
        return build_tokenizer("gpt2")
    if name.startswith("char"):
        return CharTokenizer.build_vocab("".join(TEXTS), "unk" if "unk" in name else "error")
    if name == "byte":
        return build_tokenizer("byte")
    (tmp_path / "text.txt").write_text("".join(TEXTS) * 20)
    corpus = build_corpus({"name": "text", "path": str(tmp_path / "text.txt")})
    return build_tokenizer({"name": name, "vocab_size": 600}, corpus, tmp_path / "cache")


def test_ids_and_texts_equal_those_of_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    to_transformers(tokenizer, context_length=99).save_pretrained(tmp_path / "converted")
    converted = AutoTokenizer.from_pretrained(tmp_path / "converted")
    for text in TEXTS:
        ids = tokenizer.encode(text)
        found = converted(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert found == ids, text
        assert converted.decode(ids) == tokenizer.decode(ids)
    assert converted.eos_token_id == tokenizer.eos_id
    assert converted.padding_side == "left" and converted.model_max_length == 99


def test_unknown_characters_are_an_error_or_the_unknown_token(tmp_path: Path) -> None:
    strict = to_transformers(CharTokenizer.build_vocab("abc"))
    with pytest.raises(Exception, match="UNK"):
        strict("abz")
    lenient = CharTokenizer.build_vocab("abc", "unk")
    assert to_transformers(lenient)("abz")["input_ids"] == lenient.encode("abz")


def test_a_tokenizer_without_counterpart_is_refused() -> None:
    tokenizer = build_tokenizer("byte")
    tokenizer.__dict__["name"] = "other"
    with pytest.raises(ConfigError, match="tokenizer=other cannot be written"):
        to_transformers(tokenizer)
