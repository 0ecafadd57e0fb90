"""Round trips of chat templates: checkpoint, folder for transformers, and back; both render equal texts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from modular_gpt import GPTModel, load_model
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.checkpoint.hf_folder import write_folder
from modular_gpt.data import CharTokenizer, Tokenizer, build_tokenizer
from modular_gpt.data.templates import build_template, template_names
from tests.data.chat_folders import END_OF_TURN, SHAPES

TALK = [
    {"role": "user", "content": "abc ab"},
    {"role": "assistant", "content": "bc\n\nabc"},
    {"role": "user", "content": "a"},
]
LETTERS = "".join(map(chr, [10, *range(32, 127)]))


def opened(shape: str, folder: Path) -> Tokenizer:
    SHAPES[shape](folder)
    return build_tokenizer({"name": "hf", "path": str(folder)})


def check_same(tokenizer: Tokenizer, folder: Path) -> None:
    assert tokenizer.template is not None
    reference = AutoTokenizer.from_pretrained(folder)
    for conversation, begun in ((TALK[:1], True), (TALK[:2], False), (TALK, True)):
        text = reference.apply_chat_template(conversation, add_generation_prompt=begun, tokenize=False)
        ids = reference.apply_chat_template(conversation, add_generation_prompt=begun, return_dict=False)
        assert tokenizer.template.render(conversation, begun) == text
        assert tokenizer.apply_chat_template(conversation, add_generation_prompt=begun) == ids


@pytest.mark.parametrize("shape", SHAPES)
def test_a_published_template_round_trips(shape: str, small: Callable[..., GPTModel], tmp_path: Path) -> None:
    tokenizer = opened(shape, tmp_path / "published")
    model = small(vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer)
    saved = load_model(tmp_path / "checkpoint").tokenizer
    assert saved is not None
    write_folder(tmp_path / "folder", model, saved, {})
    check_same(saved, tmp_path / "folder")
    back = load_model(tmp_path / "folder").tokenizer
    assert back is not None
    assert back.apply_chat_template(TALK) == tokenizer.apply_chat_template(TALK)
    assert tokenizer.apply_chat_template(TALK) == AutoTokenizer.from_pretrained(
        tmp_path / "published"
    ).apply_chat_template(TALK, return_dict=False)
    ends = json.loads((tmp_path / "folder" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.special_tokens[END_OF_TURN[shape]] in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("vocabulary", ["char", "byte", "llama3", "chatml"])
def test_a_named_template_round_trips(
    name: str, vocabulary: str, small: Callable[..., GPTModel], tmp_path: Path
) -> None:
    tokenizer: Tokenizer
    if vocabulary in SHAPES:
        tokenizer = opened(vocabulary, tmp_path / "published")
    else:
        tokenizer = CharTokenizer(LETTERS) if vocabulary == "char" else build_tokenizer("byte")
    tokenizer = tokenizer.with_template(build_template(name, tokenizer))
    write_folder(tmp_path / "folder", small(vocab_size=tokenizer.vocab_size), tokenizer, {})
    check_same(tokenizer, tmp_path / "folder")
