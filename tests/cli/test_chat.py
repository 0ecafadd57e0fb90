"""mgpt-generate chat=...: one message, and conversations from the keyboard."""

import builtins
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from modular_gpt import GPTModel, load_model
from modular_gpt.chat import Chat
from modular_gpt.checkpoint import save_checkpoint
from modular_gpt.cli import chat_repl, text_writer
from modular_gpt.data import CharTokenizer, build_tokenizer
from modular_gpt.data.templates import build_template
from modular_gpt.generation import Step
from tests.cli.conftest import Answer, Run, type_lines
from tests.data.chat_folders import SHAPES

LETTERS = "".join(map(chr, [10, *range(32, 127)]))
SETTINGS = ("device=cpu", "max_new_tokens=6", "greedy=true")
Write = Callable[..., Answer]


@pytest.fixture
def model(folder: Path) -> Path:
    """A checkpoint of a small character-level model with the ChatML template."""
    torch.manual_seed(1)
    tokenizer = CharTokenizer(LETTERS)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "context_length": 160, "pos": "learned", "init_std": 0.4}
    model = GPTModel(vocab_size=tokenizer.vocab_size, **sizes)
    return save_checkpoint(folder / "model", model, tokenizer.with_template(build_template("chatml", tokenizer)))


@pytest.fixture
def write(run: Run, model: Path) -> Write:
    return lambda *arguments: run("generate", f"checkpoint={model}", *SETTINGS, *arguments)


@pytest.fixture
def talk(write: Write, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Hold a conversation with typed lines and arguments of the command; returns its output."""

    def say(*lines: str | BaseException, arguments: tuple[str, ...] = ()) -> Answer:
        type_lines(monkeypatch, lines)
        return write("interactive=true", *arguments)

    return say


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> list[Chat]:
    """The conversation of each command."""
    made: list[Chat] = []
    original = chat_repl.ChatPrompter.run

    def run(self: chat_repl.ChatPrompter) -> None:
        made.append(self.chat)
        original(self)

    monkeypatch.setattr(chat_repl.ChatPrompter, "run", run)
    return made


def expected(model: Path, *texts: str, template: str = "auto", **settings: object) -> list[str]:
    chat = Chat(*load_model(model), template, max_new_tokens=6, greedy=True, **settings)
    return [chat.say(text).strip() for text in texts]


@pytest.mark.parametrize("template", ["auto", "plain", "alpaca"])
def test_a_prompt_is_one_message(write: Write, model: Path, template: str) -> None:
    answer = write(f"chat={template}", "prompt=Hello", "system=Be kind.")
    assert answer.code == 0, answer.err
    (text,) = expected(model, "Hello", template=template, system="Be kind.")
    assert answer.out.rsplit("\n[", 1)[0].strip() == text
    as_json = json.loads(write(f"chat={template}", "prompt=Hello", "system=Be kind.", "json=true").out)
    assert as_json["prompt"] == "Hello" and as_json["text"].strip() == text
    Path("lines.txt").write_text("Hello\nSo\n")
    both = write(f"chat={template}", "prompts=lines.txt").out
    first, second = expected(model, "Hello", template=template) + expected(model, "So", template=template)
    assert f"--- 'Hello'\n{first}" in both.replace("\n ", "\n") and second in both


def test_a_template_is_used_only_on_request(write: Write) -> None:
    assert write("prompt=Hello").out.startswith("Hello")
    assert not write("prompt=Hello", "chat=auto").out.startswith("Hello")


def test_a_conversation(talk: Write, chats: list[Chat], model: Path) -> None:
    answer = talk("Hello", "", "//reset", "/quit", "never read", arguments=("system=Be kind.",))
    assert answer.code == 0, answer.err
    messages = [message["content"] for message in chats[0].messages]
    assert messages[0] == "Be kind." and messages[1::2] == ["Hello", "/reset"] and len(messages) == 5
    assert [text.strip() for text in messages[2::2]] == expected(model, "Hello", "/reset", system="Be kind.")
    assert all(text.strip() in answer.out for text in messages[2::2])
    assert answer.out.splitlines()[-1].startswith("[12 tokens in") or "tokens in" in answer.out.splitlines()[-1]


def test_commands(talk: Write, chats: list[Chat], folder: Path) -> None:
    commands = ("/save talk.json", "/reset", "So", "/load talk.json", "/set max_new_tokens=2", "Well", "/settings")
    answer = talk("Hello", *commands, "/help", "/reset", arguments=("system=Be kind.",))
    assert answer.code == 0, answer.err
    saved = json.loads((folder / "talk.json").read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    for notice in ("(3 messages in talk.json)", "(3 messages from talk.json)", "(a new conversation)"):
        assert notice in answer.out
    assert "max_new_tokens=2" in answer.out and answer.out.count("/save FILE") == 2
    assert chats[0].messages == [{"role": "system", "content": "Be kind."}]


MISTAKES = {
    "/sav talk.json": "no command '/sav'; did you mean '/save'?",
    "/save": "/save needs a file",
    "/load none.json": "cannot read 'none.json'",
    "/set": "/set changes one setting",
    "/set temprature=1": "/set changes one setting",
    "/set top_k=0": "top_k must be 1 or more",
    "é": "character 'é'",
    "x" * 200: "and the model has a context of 160",
}


@pytest.mark.parametrize("line", MISTAKES, ids=lambda line: line[:12])
def test_a_mistake_changes_nothing(talk: Write, chats: list[Chat], line: str) -> None:
    arguments = ("greedy=false", "seed=0") if "top_k" in line else ()
    answer = talk("Hello", line, "So", arguments=arguments)
    assert answer.code == 0
    assert answer.out.count("error: ") == 1 and MISTAKES[line] in answer.out
    assert [message["content"] for message in chats[0].messages[::2]] == ["Hello", "So"]


def test_ctrl_c_keeps_the_partial_answer(talk: Write, chats: list[Chat], monkeypatch: pytest.MonkeyPatch) -> None:
    original = text_writer.Generation.__iter__

    def interrupted(self: text_writer.Generation) -> Iterator[Step]:
        steps = original(self)

        def two() -> Iterator[Step]:
            yield next(steps)
            yield next(steps)
            raise KeyboardInterrupt

        return two()

    monkeypatch.setattr(text_writer.Generation, "__iter__", interrupted)
    answer = talk("Hello", "So", KeyboardInterrupt(), "Well")
    assert answer.code == 0 and "[6 tokens" in answer.out
    contents = [message["content"] for message in chats[0].messages]
    assert contents[::2] == ["Hello", "So", "Well"] and all(len(text) <= 2 for text in contents[1::2])
    chat = chats[0]
    turn = chat.begin("x")
    assert turn.prompt.ids == chat.format.ids(turn.prompt.messages)


def test_a_full_context_is_reported_once(talk: Write) -> None:
    answer = talk(*[f"This is message {number}" for number in range(6)])
    assert answer.code == 0 and "error" not in answer.out
    assert 1 <= answer.out.count("(the model's context of 160 tokens is full: the oldest") < 6


def test_without_a_template_texts_are_continued(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokenizer = CharTokenizer(LETTERS)
    model = GPTModel(vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2, n_layers=1, context_length=64)
    save_checkpoint(folder / "base", model, tokenizer)
    monkeypatch.setattr(builtins, "input", lambda prompt: "quit")
    for arguments in ((), ("chat=none",), ("chat=auto",)):
        answer = run("generate", "checkpoint=base", "interactive=true", *SETTINGS, *arguments)
        assert answer.code == 0 and answer.out.startswith("Write a text and the model continues it")
        assert ("has no chat template" in answer.err) == (arguments == ("chat=auto",))
    answer = run("generate", "checkpoint=base", "interactive=true", "chat=plain", *SETTINGS)
    assert answer.code == 0 and answer.out.startswith("Write a message and the model answers")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prompt=x system=y", "system= begins a conversation: add chat="),
        ("interactive=true system=y checkpoint=base", "system= needs a chat template, and this model has none"),
        ("prompt=x chat=chatlm", "did you mean 'chatml'"),
        ("prompt=x chat=none.jinja", "cannot read the chat template 'none.jinja'"),
        ("interactive=true chat=chatml strategy=beam greedy=false", "supports stop tokens only"),
    ],
)
def test_mistakes_in_settings(
    write: Write, folder: Path, arguments: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = CharTokenizer(LETTERS)
    small = GPTModel(vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2, n_layers=1, context_length=64)
    save_checkpoint(folder / "base", small, tokenizer)
    lines = iter(["Hello"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines, "quit"))
    answer = write(*arguments.split())
    assert message in answer.err + answer.out
    assert answer.code == 2 or "strategy=beam" in arguments


def test_special_tokens_on_request(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SHAPES["chatml"](folder / "published")
    tokenizer = build_tokenizer({"name": "hf", "path": str(folder / "published")})
    torch.manual_seed(0)
    save_checkpoint(folder / "model", GPTModel(vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2), tokenizer)
    given: list[list[int]] = []
    original = text_writer.Writer.write

    def write(self: text_writer.Writer, ids: list[int], *rest: object) -> object:
        given.append(list(ids))
        return original(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(text_writer.Writer, "write", write)
    end = tokenizer.special_tokens["<|im_end|>"]
    for arguments, count in (((), 0), (("special=true",), 1), (("chat=auto",), 1), (("chat=auto", "special=true"), 2)):
        answer = run("generate", "checkpoint=model", *SETTINGS, "prompt=a<|im_end|>", *arguments)
        assert answer.code == 0 and given[-1].count(end) == count, (arguments, answer.err)
    lines = iter(["a<|im_end|>", "b<|im_end|>", "quit"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    run("generate", "checkpoint=model", *SETTINGS, "interactive=true", "chat=none", "special=true")
    assert given[-1].count(end) >= 2
