"""Each mistake in a file of records gets one sentence with the file, the location and the value."""

import json
from pathlib import Path

import pytest

from modular_gpt.core.errors import DataError
from modular_gpt.data.records import BadRecord, read_records

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello."},
]


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def one(row: object) -> str:
    """A valid record, and an invalid one in line 2."""
    return lines({"prompt": "2 + 2 =", "completion": " 4"}, row)


def with_reply(turn: object) -> str:
    return lines({"messages": TALK}, {"messages": [TALK[1], turn]})


# Name and content of a file with a mistake, and the message after the name of the file.
MISTAKES: dict[str, tuple[str, str | bytes, str]] = {
    "no JSON": ("a.jsonl", lines({"text": "x"}) + "{'text': 'x'}\n", ", line 2 is not JSON (Expecting property name"),
    "a list spread over lines": ("a.jsonl", "[\n{}\n]", ", line 1 is not JSON"),
    "an object spread over lines": ("a.json", '{\n"text": "x"\n}', ", line 1 is not JSON"),
    "cut off": ("a.jsonl", '{"text": "x', ", line 1 is not JSON (Unterminated string"),
    "a cut list": ("a.json", '[{"text": "x"},', "' is not JSON (Expecting value: line 1"),
    "too deep": ("a.jsonl", '{"text": ' + "[" * 70 + "]" * 70 + "}", ", line 1 is not JSON (it nests deeper than 64"),
    "a number for a record": ("a.jsonl", one(5), ", line 2: a row must be a JSON object, got int"),
    "a list for a record": ("a.jsonl", one([1]), ", line 2: a row must be a JSON object, got list"),
    "a text in a list": ("a.json", '["x"]', ", row 1: a row must be a JSON object, got str"),
    "Latin-1": (
        "a.jsonl",
        b'{"text": "\xe9"}\n',
        ", line 1 is not JSON ('utf-8' codec can't decode byte 0xe9 in position 10",
    ),
    "Latin-1 in a table": ("a.csv", b"text\n\xe9\n", " is not CSV in UTF-8 ('utf-8' codec can't decode byte 0xe9"),
    "UTF-16": (
        "a.jsonl",
        '{"text": "x"}'.encode("utf-16"),
        ", line 1 is not JSON ('utf-8' codec can't decode byte 0xff in position 0",
    ),
    "an empty file": ("a.jsonl", "\n\n", "' has no record that can be used"),
    "an empty list": ("a.json", "[]", "' has no record that can be used"),
    "an empty table": ("a.csv", "", "' has no first line that names its columns"),
    "a table of names": ("a.csv", "prompt,completion\n", "' has no record that can be used"),
    "fields of no format": ("a.jsonl", lines({"q": 1, "a": 2}), ", line 1: no format has the fields q, a: name them"),
    "no field": ("a.jsonl", "{}", ", line 1: no format has the fields none: name them"),
    "a field is missing": (
        "a.jsonl",
        one({"prompt": "x"}),
        ", line 2: there is no field 'completion', which the first",
    ),
    "null": ("a.jsonl", one({"prompt": "x", "completion": None}), ", field 'completion': it must be text, found null"),
    "a number": (
        "a.jsonl",
        one({"prompt": 3.5, "completion": "x"}),
        ", field 'prompt': it must be text, found the number",
    ),
    "a list": (
        "a.jsonl",
        one({"prompt": ["x"], "completion": "x"}),
        ", field 'prompt': it must be text, found a list of 1",
    ),
    "an empty answer": (
        "a.jsonl",
        one({"prompt": "x", "completion": ""}),
        ", field 'completion': it is empty, so that",
    ),
    "an empty text": ("a.csv", 'text,n\n"",1\n', ", line 2, field 'text': it is empty"),
    "half a pair": ("a.jsonl", '{"text": "a\\ud800"}', ", field 'text': U+D800 at position 1 is half a surrogate pair"),
    "input": ("a.jsonl", lines({"instruction": "x", "input": 1, "output": "y"}), ", field 'input': it must be text"),
    "label": (
        "a.jsonl",
        lines({"text": "x", "label": 0.5}),
        ", field 'label': it must be text or a whole number, found",
    ),
    "no choices": (
        "a.jsonl",
        lines({"prompt": "x", "choices": "ab", "answer": 0}),
        ", field 'choices': it must be a list",
    ),
    "one choice": ("a.jsonl", lines({"prompt": "x", "choices": ["a"], "answer": 0}), ", found a list of 1"),
    "a number as choice": (
        "a.jsonl",
        lines({"prompt": "x", "choices": ["a", 2], "answer": 0}),
        "must be text, found the number 2",
    ),
    "a choice twice": (
        "a.jsonl",
        lines({"prompt": "x", "choices": ["a", "a"], "answer": 0}),
        ", field 'choices': the text 'a' is in it twice",
    ),
    "past the choices": (
        "a.jsonl",
        lines({"prompt": "x", "choices": ["a", "b"], "answer": 2}),
        ", field 'answer': there are the choices 0 to 1, found the number 2",
    ),
    "no choice": (
        "a.jsonl",
        lines({"prompt": "x", "choices": ["a", "b"], "answer": "c"}),
        ", field 'answer': it must be the number, letter or text of a choice, found the text 'c'",
    ),
    "messages are no list": (
        "a.jsonl",
        lines({"messages": "Hello"}),
        ", field 'messages': it must be a list of messages, found the text",
    ),
    "no message": (
        "a.jsonl",
        lines({"messages": []}),
        ", field 'messages': it must be a list of messages, found a list of 0",
    ),
    "no content": (
        "a.jsonl",
        with_reply({"role": "assistant"}),
        ", line 2, field 'messages[2]': a message needs 'role' and 'content', found an object with role",
    ),
    "a text as message": (
        "a.jsonl",
        with_reply("Hello"),
        ", field 'messages[2]': a message needs 'role' and 'content', found the text 'Hello'",
    ),
    "another role": (
        "a.jsonl",
        with_reply({"role": "tool", "content": "x"}),
        ", field 'messages[2]': 'role' must be one of system, user, assistant, found the text 'tool'",
    ),
    "another speaker": (
        "a.jsonl",
        lines({"conversations": [{"from": "me", "value": "x"}]}),
        ", field 'conversations[1]': 'from' must be one of system, human",
    ),
    "empty reply": ("a.jsonl", with_reply({"role": "assistant", "content": ""}), ", field 'messages[2]': it is empty"),
    "content is null": (
        "a.jsonl",
        with_reply({"role": "assistant", "content": None}),
        ", field 'messages[2]': it must be text, found null",
    ),
    "a late system message": (
        "a.jsonl",
        with_reply(TALK[0]),
        ", field 'messages[2]': a system message can only be the first",
    ),
    "nobody answers": ("a.jsonl", lines({"messages": TALK[:2]}), ", field 'messages': no message is the assistant's"),
    "too few cells": (
        "a.csv",
        "prompt,completion\na,b\nc\n",
        ", line 3 has 1 cells, but the first line names 2 columns",
    ),
    "too many cells": (
        "a.csv",
        "prompt,completion\na,b,c\n",
        ", line 2 has 3 cells, but the first line names 2 columns",
    ),
    "an open quote": (
        "a.csv",
        'prompt,completion\n"a,b\n',
        ", line 3 is not CSV in UTF-8 (unexpected end of data)",
    ),
    "a name twice": ("a.csv", "text,text\na,b\n", ", line 1: two columns have the name 'text'"),
    "bad JSON in a cell": (
        "a.csv",
        'prompt,choices,answer\nq,"[a, b]",A\n',
        ", line 2, field 'choices': not a list in JSON",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_with_file_and_location(mistake: str, tmp_path: Path) -> None:
    name, content, message = MISTAKES[mistake]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(read_records([path]))
    sentence = str(caught.value)
    assert sentence.startswith(f"'{path}") and message in sentence and "\n" not in sentence
    if isinstance(caught.value, BadRecord) and ", field " in message:
        assert ", line " in sentence
