"""Rows of data files: equal rows from each format, one sentence for each mistake, optional skipping of bad rows."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from pathlib import Path

import pytest

from modular_gpt.core.errors import DataError
from modular_gpt.data.rows import is_row_file, read_rows

ROWS = [{"text": f'é {number},\n"quoted"', "label": "a\tb"} for number in range(5)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "\n\n".join(json.dumps(row) for row in rows).encode()


def separated(rows: list[dict[str, str]], delimiter: str) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8-sig")


CONTENT = {
    "a.jsonl": lines(ROWS),
    "a.ndjson": lines(ROWS) + b"\n",
    "a.json": json.dumps(ROWS).encode(),
    "lines.json": lines(ROWS),
    "a.csv": separated(ROWS, ","),
    "a.TSV": separated(ROWS, "\t"),
    "a.jsonl.gz": gzip.compress(lines(ROWS)),
    "a.csv.bz2": bz2.compress(separated(ROWS, ",")),
    "a.json.xz": lzma.compress(json.dumps(ROWS).encode()),
}


@pytest.mark.parametrize("name", CONTENT)
def test_each_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENT[name])
    assert is_row_file(path)
    assert [row.values for row in read_rows(path)] == ROWS


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra data")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    assert [row.values for row in read_rows(path)] == ROWS
    assert [row.place for row in read_rows(path)][-1] == f"'{path}', row 5"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet' is not Parquet"):
        list(read_rows(path))


BAD: dict[str, tuple[str, bytes, str]] = {
    "no JSON": ("a.jsonl", b'{"text": 1}\n{"text": \n', "', line 2 is not JSON (Expecting value at column 9)"),
    "no object": ("a.jsonl", b'{"text": 1}\n\n[1]\n', "', line 3: a row must be a JSON object, got list"),
    "not UTF-8": ("a.jsonl", b'{"text": "\xff"}\n', "', line 1 is not JSON ('utf-8' codec can't decode"),
    "too deep": ("a.jsonl", b"[" * 5000, "', line 1 is not JSON (it nests deeper than 64 levels)"),
    "no list": ("a.json", b'{\n"text": 1}', "', line 1 is not JSON (Expecting property name"),
    "no header": ("a.csv", b"\n", "' has no first line that names its columns"),
    "a column twice": ("a.csv", b"a,b,a\n1,2,3\n", "', line 1: two columns have the name 'a': rename one of them"),
    "half a list": ("a.json", b'[{"text": 1}', "' is not JSON (Expecting"),
    "a cell too many": ("a.csv", b'text\n"a"\nb,c\n', "', line 3 has 2 cells, but the first line names 1 columns"),
    "an open quote": ("a.csv", b'text\n"a\nb', "', line 4 is not CSV in UTF-8 (unexpected end of data)"),
    "Latin-1": ("a.csv", b"text\nna\xefve\n", "is not CSV in UTF-8 ('utf-8' codec can't decode"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(lines(ROWS))[:-9], "cannot read '"),
    "no gzip": ("a.jsonl.gz", lines(ROWS), "(Not a gzipped file"),
    "no xz": ("a.jsonl.xz", lines(ROWS), "(Input format not supported by decoder)"),
    "no rows": ("a.txt", b"text", "has no rows by its name: give a file that ends in .jsonl, .ndjson, .json"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), BAD.values(), ids=BAD)
def test_a_mistake_gets_one_sentence_with_its_location(
    name: str, content: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(read_rows(tmp_path / name))
    assert sentence in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "bad"),
    [
        ("a.jsonl", b'{"text": "a"}\n{\n[]\n{"text": "b"}', [2, 3]),
        ("a.csv", b"text\na\n1,2\n1,2,3\nb\n", [3, 4]),
    ],
)
def test_bad_rows_can_be_skipped(name: str, content: bytes, bad: list[int], tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    errors: list[DataError] = []
    assert [row.values["text"] for row in read_rows(tmp_path / name, errors.append)] == ["a", "b"]
    assert all(str(error).startswith(f"'{tmp_path / name}', line {n}") for error, n in zip(errors, bad, strict=True))


def test_long_cells_are_read(tmp_path: Path) -> None:
    path, limit = tmp_path / "a.csv", csv.field_size_limit()
    path.write_text(f"text\n{'x' * (limit + 1)}\n")
    assert [len(row.values["text"]) for row in read_rows(path)] == [limit + 1]
    assert csv.field_size_limit() == limit


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="it is not a regular file"):
        list(read_rows(tmp_path / "a.jsonl"))
