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

CONVERSATION = [
    {"role": "user", "content": "abc ab"},
    {"role": "assistant", "content": "bc\n\nabc"},
    {"role": "user", "content": "a"},
]
LETTERS = "".join(map(chr, [10, *range(32, 127)]))


def published_tokenizer(shape: str, folder: Path) -> Tokenizer:
    SHAPES[shape](folder)
    return build_tokenizer({"name": "hf", "path": str(folder)})


def check_equal_rendering(tokenizer: Tokenizer, folder: Path) -> None:
    """Compare texts and token ids with those of transformers' tokenizer of the folder."""
    assert tokenizer.template is not None
    reference = AutoTokenizer.from_pretrained(folder)
    for messages, open_turn in ((CONVERSATION[:1], True), (CONVERSATION[:2], False), (CONVERSATION, True)):
        text = reference.apply_chat_template(messages, add_generation_prompt=open_turn, tokenize=False)
        ids = reference.apply_chat_template(messages, add_generation_prompt=open_turn, return_dict=False)
        assert tokenizer.template.render(messages, open_turn) == text
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=open_turn) == ids


@pytest.mark.parametrize("shape", SHAPES)
def test_a_published_template_round_trips(shape: str, small: Callable[..., GPTModel], tmp_path: Path) -> None:
    tokenizer = published_tokenizer(shape, tmp_path / "published")
    model = small(vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "checkpoint", model, tokenizer)
    saved = load_model(tmp_path / "checkpoint").tokenizer
    assert saved is not None
    write_folder(tmp_path / "folder", model, saved, {})
    check_equal_rendering(saved, tmp_path / "folder")
    reloaded = load_model(tmp_path / "folder").tokenizer
    assert reloaded is not None
    assert reloaded.apply_chat_template(CONVERSATION) == tokenizer.apply_chat_template(CONVERSATION)
    assert tokenizer.apply_chat_template(CONVERSATION) == AutoTokenizer.from_pretrained(
        tmp_path / "published"
    ).apply_chat_template(CONVERSATION, return_dict=False)
    eos = json.loads((tmp_path / "folder" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.special_tokens[END_OF_TURN[shape]] in (eos if isinstance(eos, list) else [eos])


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("vocabulary", ["char", "byte", "llama3", "chatml"])
def test_a_named_template_round_trips(
    name: str, vocabulary: str, small: Callable[..., GPTModel], tmp_path: Path
) -> None:
    tokenizer: Tokenizer
    if vocabulary in SHAPES:
        tokenizer = published_tokenizer(vocabulary, tmp_path / "published")
    else:
        tokenizer = CharTokenizer(LETTERS) if vocabulary == "char" else build_tokenizer("byte")
    tokenizer = tokenizer.with_template(build_template(name, tokenizer))
    write_folder(tmp_path / "folder", small(vocab_size=tokenizer.vocab_size), tokenizer, {})
    check_equal_rendering(tokenizer, tmp_path / "folder")
