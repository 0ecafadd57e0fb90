"""A chat template travels: checkpoint, folder for transformers, and back; transformers renders it as we do."""

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


def check_same(ours: Tokenizer, folder: Path) -> None:
    assert ours.template is not None
    theirs = AutoTokenizer.from_pretrained(folder)
    for conversation, begun in ((TALK[:1], True), (TALK[:2], False), (TALK, True)):
        text = theirs.apply_chat_template(conversation, add_generation_prompt=begun, tokenize=False)
        ids = theirs.apply_chat_template(conversation, add_generation_prompt=begun, return_dict=False)
        assert ours.template.render(conversation, begun) == text
        assert ours.apply_chat_template(conversation, add_generation_prompt=begun) == ids


@pytest.mark.parametrize("shape", SHAPES)
def test_a_published_template_travels(shape: str, small: Callable[..., GPTModel], tmp_path: Path) -> None:
    ours = opened(shape, tmp_path / "published")
    model = small(vocab_size=ours.vocab_size)
    save_checkpoint(tmp_path / "checkpoint", model, ours)
    saved = load_model(tmp_path / "checkpoint").tokenizer
    assert saved is not None
    write_folder(tmp_path / "folder", model, saved, {})
    check_same(saved, tmp_path / "folder")
    back = load_model(tmp_path / "folder").tokenizer
    assert back is not None
    assert back.apply_chat_template(TALK) == ours.apply_chat_template(TALK)
    assert ours.apply_chat_template(TALK) == AutoTokenizer.from_pretrained(tmp_path / "published").apply_chat_template(
        TALK, return_dict=False
    )
    ends = json.loads((tmp_path / "folder" / "generation_config.json").read_text())["eos_token_id"]
    assert ours.special_tokens[END_OF_TURN[shape]] in (ends if isinstance(ends, list) else [ends])


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("kind", ["char", "byte", "llama3", "chatml"])
def test_a_template_by_name_travels(name: str, kind: str, small: Callable[..., GPTModel], tmp_path: Path) -> None:
    ours: Tokenizer
    if kind in SHAPES:
        ours = opened(kind, tmp_path / "published")
    else:
        ours = CharTokenizer(LETTERS) if kind == "char" else build_tokenizer("byte")
    ours = ours.with_template(build_template(name, ours))
    write_folder(tmp_path / "folder", small(vocab_size=ours.vocab_size), ours, {})
    check_same(ours, tmp_path / "folder")
