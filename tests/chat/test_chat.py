"""Conversations: each turn reads only new tokens, and the token ids equal those of a fresh start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import ConfigError, DataError, GPTModel
from modular_gpt.chat import Chat
from modular_gpt.data import CharTokenizer, Tokenizer, build_tokenizer
from modular_gpt.data.templates import ChatTemplate, JinjaTemplate, SpecialTexts, build_template
from tests.data.chat_folders import END_OF_TURN, SHAPES
from tests.generation.models import ATTENTIONS
from tests.generation.test_prompt_cache import tokens_read

LETTERS = "".join(map(chr, [10, *range(32, 127)]))
MESSAGES = ["abc ab", "c", "a\n\nb <|im_end|></s> b"]


def model_for(tokenizer: Tokenizer, attention: str = "mha", **settings: Any) -> GPTModel:
    torch.manual_seed(3)
    sizes = {"d_model": 24, "n_heads": 4, "n_layers": 2, "context_length": 512, "pos": "rope", "init_std": 0.4}
    attended = ATTENTIONS[attention]
    return GPTModel(vocab_size=tokenizer.vocab_size, attention=attended, **{**sizes, **settings}).eval()


@pytest.fixture(scope="module", params=SHAPES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer]:
    folder = tmp_path_factory.mktemp(request.param)
    SHAPES[request.param](folder)
    return request.param, build_tokenizer({"name": "hf", "path": str(folder)})


def all_ids_except(tokenizer: Tokenizer, *allowed: int) -> list[int]:
    """All token ids except ``allowed``."""
    return [id for id in range(tokenizer.vocab_size) if id not in allowed]


def letter_and_end(tokenizer: Tokenizer, end: str) -> list[int]:
    """All token ids except the letter c and the end of a turn; an answer of these has only one encoding."""
    return all_ids_except(tokenizer, tokenizer.encode("ac")[-1], tokenizer.special_tokens[end])


def check_logprobs(model: GPTModel, prompt: list[int], ids: list[int], logprobs: list[float] | None) -> None:
    """The log-probabilities computed with the kept cache equal those of one pass over all tokens."""
    with torch.no_grad():
        fresh = model(torch.tensor([[*prompt, *ids]])).log_softmax(-1)[0, len(prompt) - 1 : -1]
    expected = fresh.gather(1, torch.tensor(ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(logprobs), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["mha", "swa", "mla", "linear"])
def test_a_conversation_equals_a_pass_over_all_tokens(published: tuple[str, Tokenizer], attention: str) -> None:
    shape, tokenizer = published
    model = model_for(tokenizer, attention)
    chat = Chat(model, tokenizer, system=None if shape == "gemma" else "be c", seed=0, logprobs=True, max_new_tokens=9)
    chat.settings.suppress_tokens = letter_and_end(tokenizer, END_OF_TURN[shape])
    read = 0
    for text in MESSAGES:
        turn = chat.begin(text)
        fresh = tokenizer.apply_chat_template([*chat.messages, turn.message], add_generation_prompt=True)
        with tokens_read(model) as counts:
            answer = turn.run.finish()[0][0]
        assert turn.prompt.ids == fresh
        regular = not chat.messages or all(
            message["content"] for message in chat.messages
        )  # Qwen's empty answers differ
        if regular and (shape != "mistral" or not read):  # its answers begin with a space, which is suppressed here
            assert sum(counts) == len(fresh) + len(answer.ids) - 1 - read
        check_logprobs(model, turn.prompt.ids, answer.ids, answer.logprobs)
        read = len(fresh) + len(answer.ids) - 1
        content = chat.end(turn, answer)
        assert set(content) <= {"c"} and chat.messages[-1] == {"role": "assistant", "content": content}
    assert {message["role"] for message in chat.messages} <= {"system", "user", "assistant"}


def test_answers_that_no_text_encodes_to_keep_their_ids(published: tuple[str, Tokenizer]) -> None:
    """The answer has adjacent tokens a and b, which the tokenizer would merge; still only new tokens are read."""
    shape, tokenizer = published
    model = model_for(tokenizer)
    letters = [tokenizer.encode(f"c{letter}")[-1] for letter in "ab"]
    chat = Chat(
        model,
        tokenizer,
        seed=1,
        max_new_tokens=24,
        temperature=9.0,
        suppress_tokens=all_ids_except(tokenizer, *letters),
    )
    chat.say("c")
    turn = chat.begin("c")
    with tokens_read(model) as counts:
        turn.run.finish()
    fresh = tokenizer.apply_chat_template([*chat.messages, turn.message], add_generation_prompt=True)
    assert "ab" in chat.messages[1]["content"]
    if shape == "mistral":
        assert turn.prompt.ids == fresh
    else:
        assert turn.prompt.ids != fresh and tokenizer.decode(turn.prompt.ids) == tokenizer.decode(fresh)
        assert sum(counts) < len(turn.prompt.ids)


def char_chat(template: str | ChatTemplate, **settings: Any) -> Chat:
    tokenizer = CharTokenizer(LETTERS)
    sizes = {name: settings.pop(name) for name in ("context_length", "pos") if name in settings}
    chat = Chat(model_for(tokenizer, **sizes), tokenizer, template, **{"seed": 0, "max_new_tokens": 12, **settings})
    return chat


@pytest.mark.parametrize("template", ["plain", "chatml", "alpaca"])
def test_answers_stop_at_the_text_of_a_marker(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without special tokens an answer ends where the model generates the text of the marker."""
    chat = char_chat(template, max_new_tokens=60)
    end = chat.format.template.end_of_turn
    script = scripted(chat, f" hello{end}", f"good{end}x", "bad\nUser: x" if template == "plain" else f"bad{end}")
    assert [chat.say(text) for text in ("hi", "so", "well")] == (
        ["hello", "good", "bad"] if template == "plain" else [" hello", "good", "bad"]
    )
    assert len(chat.messages) == 6
    script.append("")
    turn = chat.begin("ok")
    assert turn.prompt.ids == chat.format.ids([*chat.messages, turn.message])


def scripted(chat: Chat, *answers: str) -> list[str]:
    """Make a character-level model generate these answers, one per turn; returns the remaining ones."""
    to_come, tokenizer = list(answers), chat.format.tokenizer
    begin = chat.begin
    head = chat.model.logits

    def begun(text: str) -> Any:
        turn = begin(text)
        ids = iter(tokenizer.encode(to_come.pop(0)))

        def logits(x: torch.Tensor) -> torch.Tensor:
            forced = torch.full_like(head(x), -100.0)
            forced[..., next(ids, 0)] = 100.0
            return forced

        chat.model.logits = logits  # type: ignore[method-assign]  # of this model alone
        return turn

    chat.begin = begun  # type: ignore[method-assign]
    return to_come


def test_another_end_of_text_is_not_included_in_an_answer(tmp_path: Path) -> None:
    SHAPES["chatml"](tmp_path)
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path), "eos": "<|endoftext|>"})
    other = tokenizer.special_tokens["<|endoftext|>"]
    chat = Chat(model_for(tokenizer), tokenizer, seed=0, suppress_tokens=all_ids_except(tokenizer, other))
    assert chat.say("abc") == ""
    assert chat.begin("c").prompt.ids == chat.format.ids([*chat.messages, {"role": "user", "content": "c"}])


@pytest.mark.parametrize("strategy", ["lookup", "speculative", "beam", "contrastive"])
def test_strategies(strategy: str) -> None:
    chat = char_chat("chatml", seed=None, strategy=strategy, max_new_tokens=6)
    if strategy == "speculative":
        chat.draft = model_for(chat.format.tokenizer, d_model=8)
    if strategy == "beam":
        with pytest.raises(ConfigError, match="strategy=beam supports stop tokens only"):
            chat.say("hi")
        return
    for text in ("hi", "so"):
        chat.say(text)
    turn = chat.begin("ok")
    assert turn.prompt.text == chat.format.template.render([*chat.messages, turn.message], open_turn=True)


def test_leaving_a_stream_early_keeps_the_text_streamed_so_far() -> None:
    chat = char_chat("chatml", max_new_tokens=30)
    chunks = []
    stream = chat.stream("hi")
    for chunk in stream:
        chunks.append(chunk)
        if len(chunks) == 4:
            break
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert chat.messages[-1]["content"].startswith("".join(chunks)) and len(chat.messages) == 2
    turn = chat.begin("so")
    with tokens_read(chat.model) as counts:
        turn.run.finish()
    assert counts[0] < len(turn.prompt.ids) - 50
    assert "".join(chat.stream("x")) == chat.messages[-1]["content"] or chat.messages[-1]["content"] != ""


def test_a_failure_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = char_chat("chatml")
    chat.say("hi")
    before = list(chat.messages)
    with pytest.raises(DataError, match="character 'é'"):
        chat.say("é")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = chat.model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat.say("so")
    hook.remove()
    assert chat.messages == before
    turn = chat.begin("so")
    answer = turn.run.finish()[0][0]
    fresh = char_chat("chatml")
    fresh.messages = before
    assert fresh.begin("so").run.finish()[0][0].ids == answer.ids


def test_saved_and_loaded(tmp_path: Path) -> None:
    chat = char_chat("chatml", system="be kind")
    chat.say("hi")
    chat.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text()) == {"messages": chat.messages}
    other = char_chat("chatml")
    other.load(tmp_path / "talk.json")
    assert other.messages == chat.messages
    assert other.begin("so").prompt.ids == chat.begin("so").prompt.ids
    other.reset()
    assert other.messages == [] and len(chat.messages) == 3
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "be kind"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "cannot be read as JSON"),
        ("{}", "has no messages"),
        ('{"messages": [1]}', "message 1 must be a mapping"),
        ('[{"role": "user", "content": "x"}]', "ends with a message of the user"),
        ('[{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}]', "has the role 'tool'"),
    ],
)
def test_files_without_a_conversation_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    chat = char_chat("chatml")
    chat.say("hi")
    before = list(chat.messages)
    if content is not None:
        (tmp_path / "talk.json").write_text(content)
    with pytest.raises(DataError, match=message):
        chat.load(tmp_path / "talk.json")
    assert chat.messages == before
    with pytest.raises(DataError, match="cannot write"):
        chat.save(tmp_path / "none" / "talk.json")


class TestPastTheContext:
    def test_the_oldest_turns_are_dropped(self) -> None:
        chat = char_chat("plain", context_length=64, pos="learned", max_new_tokens=10, system="kind")
        notices = []
        for number in range(12):
            turn = chat.begin(f"number {number}")
            assert len(turn.prompt.ids) + 10 <= 64
            assert turn.prompt.messages[0]["role"] == "system" and turn.prompt.messages[-1] == turn.message
            notices.append(turn.prompt.notice)
            chat.end(turn, turn.run.finish()[0][0])
        shown = [notice for notice in notices if notice]
        assert 2 <= len(shown) < 12 and "the model's context of 64 tokens is full: the oldest 2 messages" in shown[0]
        assert len(chat.messages) == 25

    def test_an_answer_is_limited_to_the_remaining_context(self) -> None:
        chat = char_chat("plain", context_length=64, pos="learned", max_new_tokens=500)
        turn = chat.begin("x" * 40)
        assert turn.prompt.max_new_tokens == 64 - len(turn.prompt.ids)
        with pytest.raises(ConfigError, match="this message has 88 tokens with its template, and the model has"):
            chat.begin("x" * 71)

    @pytest.mark.parametrize("attention", ["mha", "linear"])
    def test_a_model_with_a_sliding_context_continues(self, attention: str) -> None:
        tokenizer = CharTokenizer(LETTERS)
        model = model_for(tokenizer, attention, context_length=32)
        chat = Chat(model, tokenizer, "chatml", max_new_tokens=10, seed=0)
        for number in range(6):
            turn = chat.begin(f"number {number}")
            with tokens_read(chat.model) as counts:
                answer = turn.run.finish()[0][0]
            notice = f"has {len(turn.prompt.ids)} tokens, of which the model sees the last 32"
            assert (notice in turn.prompt.notice) == (len(turn.prompt.ids) >= 32)
            assert sum(counts) < 90 and (number < 1 or sum(counts) < len(turn.prompt.ids))
            chat.end(turn, answer)
        assert turn.prompt.text.count("number") == 6

    def test_windows_and_errors(self) -> None:
        chat = char_chat("plain", context_length=32, pos="learned", max_new_tokens=10, overflow="window")
        for number in range(4):
            chat.say(f"number {number}")
        assert "the model sees the last 32 of them, or fewer" in chat.begin("x").prompt.notice
        chat.settings.overflow = "error"
        with pytest.raises(ConfigError, match="ask for fewer"):
            chat.say("x")


def test_special_tokens_of_a_message_on_request(tmp_path: Path) -> None:
    SHAPES["chatml"](tmp_path)
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    end = tokenizer.special_tokens["<|im_end|>"]
    ids = [
        Chat(model_for(tokenizer), tokenizer, special=special).begin("a<|im_end|>").prompt.ids
        for special in (False, True)
    ]
    assert [found.count(end) for found in ids] == [1, 2]


def test_a_template_that_rewrites_earlier_answers_is_read_again() -> None:
    source = (
        "{% for m in messages %}{{ m.role[0] }}:"
        "{{ m.content if m.role == 'user' or loop.last else '-' }};{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    chat = char_chat(JinjaTemplate({"default": source}, {}, SpecialTexts()))
    for text in ("hi", "so", "ok"):
        chat.say(text)
    assert chat.begin("x").prompt.text == "u:hi;a:-;u:so;a:-;u:ok;a:-;u:x;a:"
    assert chat.begin("x").prompt.ids == chat.format.tokenizer.encode("u:hi;a:-;u:so;a:-;u:ok;a:-;u:x;a:")


def test_invalid_conversations_are_refused(published: tuple[str, Tokenizer]) -> None:
    tokenizer = CharTokenizer(LETTERS)
    model = model_for(tokenizer)
    make: list[tuple[Callable[[], Chat], str]] = [
        (lambda: Chat(model, None), "saved without one"),
        (lambda: Chat(model, tokenizer), "has no chat template: choose one of"),
        (lambda: Chat(model, tokenizer, "plain2"), "did you mean 'plain'"),
        (lambda: Chat(model, tokenizer, "plain", temprature=1.0), "temperature"),
    ]
    for call, message in make:
        with pytest.raises(ConfigError, match=message):
            call()
    if published[0] == "gemma":
        with pytest.raises(DataError, match="there is no role for a system line"):
            Chat(model_for(published[1]), published[1], system="be c")


def test_a_template_object() -> None:
    tokenizer = CharTokenizer(LETTERS)
    chat = Chat(model_for(tokenizer), tokenizer, build_template("plain", tokenizer), max_new_tokens=3)
    assert len(chat.say("hi")) <= 3 and len(chat.messages) == 2
