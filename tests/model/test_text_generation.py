"""Generation from text by a model with a tokenizer."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTModel, load_model
from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data import CharTokenizer, build_tokenizer
from modular_gpt.data.tokenizers.tiktoken_encoding import TiktokenTokenizer

TOKENIZER = CharTokenizer.build_vocab("abcdefgh .")


def model_of(tokenizer: Any = TOKENIZER, **settings: Any) -> GPTModel:
    torch.manual_seed(0)
    size = {"d_model": 16, "n_heads": 2, "n_layers": 1, "context_length": 32, "vocab_size": 20, **settings}
    model = GPTModel(**size).eval()
    model.tokenizer = tokenizer
    return model


def test_a_text_is_continued_like_its_ids() -> None:
    model = model_of()
    forbidden = list(range(TOKENIZER.vocab_size, 20))
    for settings in ({"greedy": True}, {"seed": 3, "temperature": 0.7}, {"strategy": "beam", "num_beams": 2}):
        ids = model.generate([TOKENIZER.encode("abc")], 9, suppress_tokens=forbidden, **settings)
        assert model.generate("abc", max_new_tokens=9, **settings) == TOKENIZER.decode(ids[0])
        assert len(model.generate("abc", 9, **settings)) == 12


def test_several_texts_and_several_continuations() -> None:
    model = model_of()
    texts = model.generate(["abc", "h"], 5, greedy=True)
    assert texts == [model.generate("abc", 5, greedy=True), model.generate("h", 5, greedy=True)]
    several: Any = model.generate("ab", 5, seed=0, num_return_sequences=3)
    assert len(several) == 3 and all(text.startswith("ab") and len(text) == 7 for text in several)
    assert [text[:2] for text in model.generate(["ab", "cd"], 3, num_return_sequences=2)] == ["ab", "ab", "cd", "cd"]
    assert len(model.generate("ab")) == 2 + 64


def test_stop_strings_and_drafts() -> None:
    model = model_of()
    text = model.generate("abc", 30, greedy=True)
    at = text[4]
    assert model.generate("abc", 30, greedy=True, stop=[at]) == text[: text.index(at, 3)]
    drafted = model.generate("abc", 30, greedy=True, strategy="speculative", draft=model)
    assert drafted == text


def test_an_end_token_ends_a_text_and_is_not_in_it() -> None:
    tokenizer = CharTokenizer.build_vocab("abcdefgh .")
    model = model_of(tokenizer)
    free = model.generate("ab", 8, seed=0)
    tokenizer.eos_id = tokenizer.encode(free[4])[0]
    assert model.generate("ab", 8, seed=0) == free[: free.index(free[4], 2)]


def test_a_tokenizer_can_be_passed() -> None:
    model = model_of(None)
    assert model.tokenizer is None
    assert model.generate("ab", 3, tokenizer=TOKENIZER, greedy=True) == model_of().generate("ab", 3, greedy=True)
    with pytest.raises(ConfigError, match="got text: encode it with the model's tokenizer"):
        model.generate("ab", 3)
    with pytest.raises(ConfigError, match=r"tokenizer must be one of modular_gpt\.data, got a str"):
        model.generate("ab", 3, tokenizer="char")
    with pytest.raises(DataError, match="character 'z'"):
        model_of().generate("xz"[1:], 3)
    with pytest.raises(ConfigError, match="the prompt is empty"):
        model_of().generate("", 3)


def test_the_tokenizer_is_neither_weight_nor_setting() -> None:
    model, plain = model_of(), model_of(None)
    assert list(model.state_dict()) == list(plain.state_dict()) and model.config == plain.config
    assert "tokenizer" not in dict(model.named_modules())
    for same in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same.generate("abc", 5, greedy=True) == model.generate("abc", 5, greedy=True)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    plain.load_state_dict(torch.load(file, weights_only=True))


def test_models_from_folders_accept_text(tmp_path: Path) -> None:
    model = model_of(None)
    save_checkpoint(tmp_path / "native", model, TOKENIZER)
    model.save_pretrained(tmp_path / "plain")
    expected = model.generate("abc", 6, tokenizer=TOKENIZER, greedy=True)
    for same in (
        load_model(tmp_path / "native").model,
        GPTModel.from_pretrained(tmp_path / "native"),
        load_checkpoint(tmp_path / "native").model,
    ):
        assert same.generate("abc", 6, greedy=True) == expected
    assert GPTModel.from_pretrained(tmp_path / "plain").tokenizer is None


def test_a_published_tokenizer_can_be_copied(tiktoken_cache: Path) -> None:
    tokenizer = build_tokenizer("gpt2")
    assert isinstance(tokenizer, TiktokenTokenizer)
    model = model_of(tokenizer, vocab_size=50257)
    assert copy.deepcopy(model).generate("Once", 3, greedy=True) == model.generate("Once", 3, greedy=True)
