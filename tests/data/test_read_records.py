"""Records: every format from every type of file, and one sentence for each mistake."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data.records import FORMATS, Record, Skipped, Turn, read_records, record_files
from modular_gpt.data.records.record import for_validation

Write = Callable[[str, str | bytes], Path]

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hello."},
]
SHAREGPT = [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Hello."}]

# A row of each format, with its prompt and its answer.
ROWS: dict[str, tuple[dict[str, Any], str, str]] = {
    "messages": ({"messages": TALK}, "Hello?", "Hello."),
    "sharegpt": ({"conversations": SHAREGPT}, "Hello?", "Hello."),
    "choices": ({"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": 1}, "2 + 2 =", " 4"),
    "completion": ({"prompt": "2 + 2 =", "completion": " 4"}, "2 + 2 =", " 4"),
    "instruction": ({"instruction": "Reverse.", "input": "abc", "output": "cba"}, "Reverse.\n\nabc", "cba"),
    "label": ({"text": "a fine day", "label": "good"}, "a fine day", "good"),
    "text": ({"text": "once upon a time"}, "", "once upon a time"),
}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Function that writes a file with the given name and content."""

    def writer(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(*paths: Path, **settings: Any) -> list[Record]:
    return list(read_records(paths, **settings))


def test_every_format_is_tested() -> None:
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", ROWS)
def test_a_format_is_detected_by_its_fields(name: str, write: Write) -> None:
    row, prompt, answer = ROWS[name]
    (record,) = read(write("a.jsonl", lines({**row, "id": 7, "source": None})))
    assert (record.format, record.prompt, record.answer) == (name, prompt, answer)


def test_conversations_keep_their_turns(write: Write) -> None:
    chat, shared, asked = read(
        write("a.jsonl", lines({"messages": TALK})),
        write("b.jsonl", lines({"conversations": SHAREGPT})),
        write("c.jsonl", lines({"instruction": "Go.", "output": "Gone."})),
    )
    assert chat.turns == (Turn("system", "Be brief."), Turn("user", "Hello?"), Turn("assistant", "Hello."))
    assert shared.turns == chat.turns[1:]
    assert asked.turns == (Turn("user", "Go."), Turn("assistant", "Gone."))


@pytest.mark.parametrize("answer", [1, "1", "B", "b", " 4"])
def test_the_right_choice_is_a_number_a_letter_or_its_text(answer: object, write: Write) -> None:
    (record,) = read(write("a.jsonl", lines({"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": answer})))
    assert record.answer == " 4" and record.choices == (" 3", " 4")


def test_labels_may_be_numbers(write: Write) -> None:
    records = read(write("a.jsonl", lines({"text": "x", "label": 1}, {"text": "y", "label": True})))
    assert [record.label for record in records] == ["1", "true"]


def test_files_of_all_endings_give_the_same_records(write: Write) -> None:
    rows = [{"prompt": 'say "a,\tb"', "completion": "line 1\nline 2"}, {"prompt": "", "completion": "é"}]
    table = 'prompt,completion\n"say ""a,\tb""","line 1\nline 2"\n,é\n'
    paths = [
        write("a.jsonl", "\ufeff" + lines(rows[0]) + "\n" + lines(rows[1])),
        write("b.ndjson", lines(*rows).replace("\n", "\r\n")),
        write("c.json", json.dumps(rows, indent=2)),
        write("d.json", lines(*rows)),
        write("e.csv", "\ufeff" + table),
        write("f.tsv", 'prompt\tcompletion\n"say ""a,\tb"""\t"line 1\nline 2"\n\té\n'),
    ]
    found = [[(record.prompt, record.answer) for record in read(path)] for path in paths]
    assert found == [[(row["prompt"], row["completion"]) for row in rows]] * len(paths)


def test_lists_in_cells_of_a_table_are_json(write: Write) -> None:
    (record,) = read(write("a.csv", 'prompt,choices,answer\nq,"[""x"", ""y""]",B\n'))
    assert (record.choices, record.answer) == (("x", "y"), "y")


def test_line_numbers_include_the_lines_of_a_cell(write: Write) -> None:
    (first, second) = read(write("a.csv", 'prompt,completion\n"one\ntwo",x\nthree,y\n'))
    assert first.where.endswith("line 2") and second.where.endswith("line 4")


def test_a_field_of_another_name(write: Write) -> None:
    path = write("a.jsonl", lines({"question": "q", "prompt": "unused", "reply": "a", "text": "t"}))
    (record,) = read(path, fields={"prompt": "question", "completion": "reply"})
    assert (record.format, record.prompt, record.answer) == ("completion", "q", "a")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra data is not installed")
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([ROWS["messages"][0], {"messages": None}])
    importlib.import_module("pyarrow.parquet").write_table(table, path)
    skipped = Skipped()
    (record,) = read(path, skipped=skipped)
    assert record.turns[1] == Turn("user", "Hello?")
    assert skipped.first == [f"'{path}', row 2, field 'messages': it must be a list of messages, found null"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="is not Parquet"):
        read(path)


def test_parquet_without_its_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"a.parquet' needs the package 'pyarrow': pip install 'modular-gpt\[data\]'"):
        read(write("a.parquet", b"PAR1"))


class TestFiles:
    """Selection of the files."""

    def test_a_folder_stands_for_its_record_files(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "deep").mkdir()
        expected = [write("a.csv", ""), write("b.jsonl", ""), write("deep/c.json", "")]
        write("notes.txt", "")
        assert record_files(str(tmp_path)) == expected
        assert record_files([tmp_path / "b.jsonl", f"{tmp_path}/*.csv"]) == [expected[1], expected[0]]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("nothing.jsonl", "there is no file"),
            ("*.jsonl", "no file matches"),
            ("notes.txt", "has the ending of no record file: give one that ends with .jsonl"),
            ("empty", "has no record file"),
        ],
    )
    def test_a_path_without_records(self, name: str, message: str, write: Write, tmp_path: Path) -> None:
        write("notes.txt", "x")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=message):
            record_files(str(tmp_path / name))


def test_bad_records_are_counted_and_skipped(write: Write) -> None:
    path, skipped = (
        write("a.jsonl", "no JSON\n" + lines(ROWS["completion"][0], {"prompt": 1, "completion": ""}) + "5\n{}\n"),
        Skipped(),
    )
    assert [record.answer for record in read(path, skipped=skipped)] == [" 4"]
    assert skipped.count == 4 and len(skipped.first) == 3
    assert "line 1" in skipped.first[0] and "line 3" in skipped.first[1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promt": "question"}, "data.fields: no field 'promt'; did you mean 'prompt'?"),
        ({"prompt": 5}, "data.fields.prompt must be the name of a field in the files, got 5"),
        ({"prompt": "question"}, "there is no field 'question', which data.fields names; it has prompt, completion"),
    ],
)
def test_wrong_names_of_fields(fields: dict[str, Any], message: str, write: Write) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        read(write("a.jsonl", lines(ROWS["completion"][0])), fields=fields)
    assert message in str(caught.value)


def test_equal_records_are_held_out_together() -> None:
    records = [Record("text", f"line {number}", f"text {number % 500}") for number in range(1000)]
    held_out = [for_validation(record, 0.1) for record in records]
    assert held_out[:500] == held_out[500:] and 0.05 < sum(held_out) / 1000 < 0.15
