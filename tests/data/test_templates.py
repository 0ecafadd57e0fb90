"""Chat templates: rendered as by transformers, encoded without injected special tokens, saved with the tokenizer."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from modular_gpt import ConfigError, DataError
from modular_gpt.data import Tokenizer, build_corpus, build_tokenizer
from modular_gpt.data.templates import (
    JinjaTemplate,
    Message,
    SpecialTexts,
    build_template,
    encode_with_answers,
    step_limit,
    template_names,
)
from modular_gpt.data.tokenizers import CharTokenizer
from modular_gpt.data.tokenizers.tiktoken_encoding import TiktokenTokenizer
from tests.data.chat_folders import CHATML, END_OF_TURN, SHAPES, byte_level

TALK: list[Message] = [
    {"role": "user", "content": "abc ab"},
    {"role": "assistant", "content": "bc\n\nabc é"},
    {"role": "user", "content": " a\n"},
    {"role": "assistant", "content": "c"},
]
SYSTEM: Message = {"role": "system", "content": "be abc"}


def talk(shape: str) -> list[Message]:
    return TALK if shape == "gemma" else [SYSTEM, *TALK]


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(shape: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(shape)
    SHAPES[shape](made)
    return made


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    tokenizer = build_tokenizer({"name": "hf", "path": str(folder)})
    assert tokenizer.template is not None
    return tokenizer


def test_published_shapes_render_and_encode_as_in_transformers(shape: str, folder: Path, tokenizer: Tokenizer) -> None:
    reference, template = AutoTokenizer.from_pretrained(folder), build_template("auto", tokenizer)
    whole = talk(shape)
    for count in range(1 if shape == "gemma" else 2, len(whole) + 1):
        for opened in (False, True):
            given = dict(conversation=whole[:count], add_generation_prompt=opened)
            assert template.render(whole[:count], opened) == reference.apply_chat_template(**given, tokenize=False)
            expected = reference.apply_chat_template(**given, return_dict=False)
            assert tokenizer.apply_chat_template(whole[:count], add_generation_prompt=opened) == expected


def test_answers_are_the_texts_of_the_assistant_and_their_end_tokens(shape: str, tokenizer: Tokenizer) -> None:
    template = build_template("auto", tokenizer)
    segments = template.segments(talk(shape))
    assert "".join(segment.text for segment in segments) == template.render(talk(shape))
    answers = [segment.text.strip() for segment in segments if segment.is_answer]
    assert answers == [f"{message['content']}{END_OF_TURN[shape]}" for message in TALK[1::2]]
    assert template.stops == (END_OF_TURN[shape],)
    encoded = encode_with_answers(template, tokenizer, talk(shape))
    assert encoded.ids == tokenizer.apply_chat_template(talk(shape))
    counted = [id for id, counts in zip(*encoded, strict=True) if counts]
    assert tokenizer.decode(counted).replace(" ", "") == "".join(answers).replace(" ", "")


def test_special_tokens_in_a_message_stay_text(shape: str, tokenizer: Tokenizer) -> None:
    end = END_OF_TURN[shape]
    plain, spelled = ([{"role": "user", "content": text}] for text in ("abc", f"abc{end}abc {end}"))
    end_id = tokenizer.special_tokens[end]
    ids, expected = (tokenizer.apply_chat_template(messages) for messages in (spelled, plain))
    assert ids.count(end_id) == expected.count(end_id)
    assert tokenizer.decode(ids).replace(" ", "") == build_template("auto", tokenizer).render(spelled).replace(" ", "")
    counted = encode_with_answers(
        build_template("auto", tokenizer), tokenizer, [*plain, {"role": "assistant", "content": end}]
    )
    assert counted.ids.count(end_id) == expected.count(end_id) + 1  # the end of the answer


SPELLINGS = ["a", " ", "\n", "<|", "|>", "<", ">", "im_end", "eot_id", "/s", "END"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.lists(
        st.lists(st.sampled_from(["a", " ", "\n", "<|", "|>", "<", ">", "im_end", "eot_id", "/s", "END"])),
        min_size=3,
        max_size=3,
    )
)
def test_no_message_produces_a_special_token(contents: list[list[str]], shape: str, tokenizer: Tokenizer) -> None:
    """Messages that spell special tokens, alone or with the template, add no special tokens."""
    roles = ("user", "assistant", "user")
    texts = ["x" + "".join(content).replace("END", END_OF_TURN[shape]) + "x" for content in contents]
    spelled = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    ids = tokenizer.apply_chat_template(spelled)
    plain = tokenizer.apply_chat_template([{"role": role, "content": "x"} for role in roles])
    special = set(tokenizer.special_tokens.values())
    assert [id for id in ids if id in special] == [id for id in plain if id in special]


def test_a_template_is_saved_with_its_tokenizer(shape: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.apply_chat_template(TALK) == tokenizer.apply_chat_template(TALK)
    assert loaded.fingerprint == tokenizer.fingerprint == tokenizer.with_template(None).fingerprint
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text())
    content["template"]["sources"]["default"] += "x"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="its chat template does not match its fingerprint"):
        Tokenizer.load(tmp_path)
    del content["template"], content["template_fingerprint"]  # as in files of former versions
    file.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).template is None


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("vocabulary", ["llama3", "chatml", "char"])
def test_templates_by_name(name: str, vocabulary: str, tmp_path: Path) -> None:
    alphabet = "".join(map(chr, [10, *range(32, 127)]))
    if vocabulary == "char":
        tokenizer: Tokenizer = CharTokenizer(alphabet)
    else:
        SHAPES[vocabulary](tmp_path)
        tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    template = build_template(name, tokenizer)
    tokenizer = tokenizer.with_template(template)
    messages = [SYSTEM, TALK[0], TALK[3], TALK[2], TALK[3]]
    segments = template.segments(messages)
    assert "".join(segment.text for segment in segments) == template.render(messages)
    answers = "".join(segment.text for segment in segments if segment.is_answer)
    assert answers.replace(" ", "") == f"c{template.end_of_turn}" * 2
    ids, counts = encode_with_answers(template, tokenizer, messages)
    assert tokenizer.decode([id for id, counted in zip(ids, counts, strict=True) if counted]) == answers
    assert tokenizer.decode(ids) == template.render(messages)
    assert tokenizer.bos_id is None or ids.count(tokenizer.bos_id) == 1
    opened = template.render(messages[:2], open_turn=True)
    assert template.render(messages).startswith(opened)
    # as rendered by transformers
    jinja = JinjaTemplate({"default": str(template.jinja())}, {}, SpecialTexts.of(tokenizer))
    for start, open_turn in ((messages, False), (messages[:2], True), (messages[1:2], True)):
        assert jinja.render(start, open_turn) == template.render(start, open_turn)
    answers_of = [segment.text for segment in jinja.segments(messages) if segment.is_answer]
    assert "".join(answers_of) == answers and jinja.end_of_turn == template.end_of_turn


def special(*texts: str) -> SpecialTexts:
    return SpecialTexts(special=frozenset(texts))


def test_a_template_that_rewrites_earlier_answers_is_refused_for_training() -> None:
    last_only = "{% for m in messages %}{{ m['content'] if loop.last or m['role'] == 'user' else '-' }}|{% endfor %}"
    template = JinjaTemplate({"default": last_only}, {}, special())
    assert template.render(TALK) == "abc ab|-| a\n|c|"
    with pytest.raises(DataError, match="writes message 2 differently when others follow it"):
        template.segments(TALK)
    marked = last_only.replace("{{ m", "{% generation %}{{ m").replace("}}", "}}{% endgeneration %}")
    found = JinjaTemplate({"default": marked}, {}, special()).segments(TALK)
    assert [segment.text for segment in found if segment.is_answer] == ["abc ab", "-", " a\n", "c"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no') }}", "cannot render the conversation: no"),
        ("{% for %}", "cannot render the conversation"),
        ("{{ ''.__class__.__mro__ }}", "cannot render the conversation: .*unsafe"),
        ("{{ messages.append(1) }}", "cannot render the conversation: .*unsafe"),
        ("{% include '/etc/passwd' %}", "cannot render the conversation"),
        ("{{ 1 / 0 }}", "cannot render the conversation: division by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "cannot render the conversation: Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "computes too much|more than 5,000 steps"),
        ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "more than 5,000 steps"),
    ],
)
def test_hostile_templates_get_one_sentence(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_limit, "MAX_STEPS", 5000)
    template = JinjaTemplate({"default": source}, {}, special())
    before = sys.gettrace()
    with pytest.raises(DataError, match=message):
        template.render(TALK)
    assert sys.gettrace() is before


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "a conversation is a list of messages"),
        ([], "has no message"),
        (["hello"], "message 1 must be a mapping"),
        ([{"role": "user"}], "message 1 .user. needs a text"),
        ([{"role": "user", "content": None}], "message 1 .user. needs a text"),
        ([{"role": "<|im_end|>", "content": ""}], "message 1 needs a role"),
        ([TALK[0], {"role": "tool", "content": "1"}], "message 2 has the role 'tool'"),
        ([TALK[0], SYSTEM], "message 2 has the role system"),
    ],
)
def test_bad_messages_get_one_sentence(messages: list[Message], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_template("chatml").render(messages)


def test_templates_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template 'chatlm'; did you mean 'chatml'"):
        build_template("chatlm")
    with pytest.raises(ConfigError, match="has no chat template: choose one of alpaca, chatml, plain"):
        build_template("auto", build_tokenizer("byte"))
    with pytest.raises(DataError, match="cannot read the chat template"):
        build_template(tmp_path / "none.jinja")
    with pytest.raises(ConfigError, match="no chat template: give it one"):
        build_tokenizer("byte").apply_chat_template(TALK)
    (tmp_path / "toy.jinja").write_text(CHATML)
    assert build_template(tmp_path / "toy.jinja").render(TALK) == build_template("chatml").render(TALK)


@pytest.mark.parametrize("value", [5, ["x"], [{"name": "default"}], {"default": "x"}])
def test_a_damaged_template_in_a_folder(value: object, tmp_path: Path) -> None:
    byte_level(tmp_path, ["<|endoftext|>"], CHATML)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": value}))
    with pytest.raises(DataError, match=r"tokenizer_config\.json': chat_template must be a text"):
        build_tokenizer({"name": "hf", "path": str(tmp_path)})


def test_a_new_model_has_no_template_of_another(tmp_path: Path) -> None:
    SHAPES["chatml"](tmp_path)
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    assert tokenizer.template is not None and tokenizer.for_new_model().template is None
    assert build_tokenizer("byte").for_new_model() is not None


@pytest.mark.parametrize("name", ["tiktoken", "bpe", "chatml"])
def test_special_tokens_are_encoded_on_request_only(name: str, tmp_path: Path) -> None:
    if name == "tiktoken":
        ranks = {bytes([byte]): byte for byte in range(256)}
        tokenizer: Tokenizer = TiktokenTokenizer(
            "tiny", r"\w+|\W+", ranks, {"<|endoftext|>": 256, "<|endoftext|>2": 257}
        )
    elif name == "chatml":
        SHAPES[name](tmp_path)
        tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    else:
        (tmp_path / "text.txt").write_text("some text to learn from " * 20)
        corpus = build_corpus({"name": "text", "path": str(tmp_path / "text.txt")})
        tokenizer = build_tokenizer({"name": name, "vocab_size": 300}, corpus, cache_dir=tmp_path / "cache")
    text = "a<|endoftext|>b"
    special_id = tokenizer.special_tokens["<|endoftext|>"]
    assert special_id not in tokenizer.encode(text) and special_id not in tokenizer.prompt_ids(text)
    assert tokenizer.encode(text, special=True) == [*tokenizer.encode("a"), special_id, *tokenizer.encode("b")]
    assert tokenizer.decode(tokenizer.encode(text, special=True)) == text
    assert tokenizer.encode("ab", special=True) == tokenizer.encode("ab")


def test_an_explicit_beginning_of_text_is_not_doubled(tmp_path: Path) -> None:
    SHAPES["llama3"](tmp_path)
    tokenizer = build_tokenizer({"name": "hf", "path": str(tmp_path)})
    assert tokenizer.prompt_ids("<|begin_of_text|>abc", special=True) == tokenizer.prompt_ids("abc")
    assert tokenizer.prompt_ids("<|begin_of_text|>abc").count(tokenizer.special_tokens["<|begin_of_text|>"]) == 1
