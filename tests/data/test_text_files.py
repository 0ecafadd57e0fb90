"""Text of users: folders, validation files, columns of tables; each file or row is a document."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data import SPLITS, Corpus, PreparedText, build_corpus, build_tokenizer
from modular_gpt.training import RunConfig, train


def documents(corpus: Corpus, split: str) -> list[str]:
    """The texts of the documents of a split."""
    found: dict[str, str] = {}
    for chunk in corpus.documents(split):
        found[chunk.document] = found.get(chunk.document, "") + chunk.text
    return list(found.values())


def everything(corpus: Corpus) -> str:
    return "".join(text for split in SPLITS for text in documents(corpus, split))


def text(**settings: object) -> Corpus:
    return build_corpus({"name": "text", **{name: _plain(value) for name, value in settings.items()}})


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with texts, hidden and binary files, and a link."""
    root = tmp_path / "folder"
    content = {
        "b.txt": "text b\n",
        "a.md": "text a\n",
        "sub/deep/c": "text c\n",
        ".git/d.txt": "hidden\n",
        ".e.txt": "hidden\n",
        "picture.png": "\0\1",
        "latin.dat": "\udcef".encode("utf-8", "surrogateescape").decode("latin-1"),
    }
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="latin-1" if name == "latin.dat" else "utf-8")
    (root / "link.txt").symlink_to(root / "b.txt")
    (root / "elsewhere").symlink_to(tmp_path)
    return root


class TestFolder:
    def test_it_stands_for_its_text_files_in_order(self, folder: Path) -> None:
        corpus = text(path=folder, val_fraction=0.01)
        assert everything(corpus) == "text a\ntext b\ntext c\n"
        assert corpus.notes == ("skipped in folders: 2 hidden, 2 binary",)

    def test_a_binary_txt_file_is_refused(self, folder: Path) -> None:
        (folder / "z.txt").write_bytes(b"na\xefve")
        with pytest.raises(DataError, match=r"z\.txt' is not UTF-8 \(byte 0xef at offset 2\)"):
            text(path=folder)

    def test_without_a_text(self, tmp_path: Path) -> None:
        (tmp_path / "new" / ".hidden").mkdir(parents=True)
        (tmp_path / "new" / "x.bin").write_bytes(b"\0")
        with pytest.raises(DataError) as caught:
            text(path=tmp_path / "new")
        assert str(caught.value) == (
            f"the folder '{tmp_path}/new' has no file to read (1 hidden, 1 binary skipped): correct data.path"
        )

    def test_a_character_across_the_first_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modular_gpt.data.corpora.file_search.SNIFFED", 4)
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "x").write_text("abc日本語")
        assert everything(text(path=tmp_path / "new")) == "abc日本語"


class TestEqualFiles:
    def test_they_are_read_once(self, text_corpus: Callable[..., Corpus]) -> None:
        corpus = text_corpus("one\n", "two\n", "one\n", "\ufeffone\r\n", "", "")
        assert everything(corpus) == "one\ntwo\n"
        assert corpus.notes == ("files left out, equal to earlier ones: 2",)

    def test_unless_asked(self, text_corpus: Callable[..., Corpus]) -> None:
        corpus = text_corpus("one\n", "two\n", "one\n", deduplicate=False)
        assert everything(corpus) == "one\ntwo\none\n" and corpus.notes == ()


class TestValidation:
    def test_files_of_its_own(self, tmp_path: Path) -> None:
        for name in ("a", "b", "c", "d"):
            (tmp_path / f"{name}.txt").write_text(f"text {name}\n")
        corpus = text(path=[f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"], validation=f"{tmp_path}/[cd].txt")
        assert documents(corpus, "train") == ["text a\n", "text b\n"]
        assert documents(corpus, "validation") == ["text c\n", "text d\n"]
        assert corpus.describe()["files"] == 4
        other = text(path=[f"{tmp_path}/a.txt", f"{tmp_path}/b.txt"], validation=f"{tmp_path}/c.txt")
        assert corpus.fingerprint != other.fingerprint

    @pytest.mark.parametrize("way", ["same", "link", "hard", "spelling"])
    def test_a_file_is_not_in_both(self, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a.txt").write_text("text\n")
        (tmp_path / "sub").mkdir()
        (tmp_path / "link").symlink_to("a.txt")
        os.link("a.txt", "hard")
        other = {"same": "a.txt", "spelling": "sub/../a.txt"}.get(way, way)
        with pytest.raises(DataError) as caught:
            text(path="*.txt", validation=other)
        assert str(caught.value).startswith(f"'{other}' is in data.path and in data.validation, so the")

    def test_a_copy_is_not_in_both_either(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text\n")
        (tmp_path / "b.txt").write_text("text\n")
        with pytest.raises(DataError, match=r"b\.txt' of data\.validation has the content of '.*a\.txt' of data\.path"):
            text(path=tmp_path / "a.txt", validation=tmp_path / "b.txt")
        assert everything(text(path=tmp_path / "a.txt", validation=tmp_path / "b.txt", deduplicate=False))

    def test_without_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text\n")
        (tmp_path / "b.txt").write_text("")
        with pytest.raises(DataError, match=r"the files of data\.validation have no text"):
            text(path=tmp_path / "a.txt", validation=tmp_path / "b.txt")
        with pytest.raises(DataError, match=r"there is no file 'nowhere' .*: correct data\.validation"):
            text(path=tmp_path / "a.txt", validation="nowhere")


def rows(*texts: str) -> bytes:
    return "\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode()


class TestColumn:
    def test_a_row_is_a_document(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(rows(*(f"row {number}" for number in range(10))))
        corpus = text(path=tmp_path / "a.jsonl", column="text", val_fraction=0.25)
        assert documents(corpus, "train") == [f"row {number}" for number in range(7)]
        assert documents(corpus, "validation") == [f"row {number}" for number in range(7, 10)]
        assert [corpus.characters(split) for split in SPLITS] == [7 * 5, 3 * 5]

    def test_several_files_and_formats_are_one_long_list(self, tmp_path: Path) -> None:
        folder = tmp_path / "rows"
        (folder / "deep").mkdir(parents=True)
        (folder / "a.csv").write_text('text,label\n"first, ""row""",1\nsecond,0\n')
        (folder / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(rows("third", "fourth")))
        (folder / "notes.txt").write_text("no rows")
        corpus = text(path=folder, column="text", val_fraction=0.25)
        assert documents(corpus, "train") == ['first, "row"', "second", "third"]
        assert documents(corpus, "validation") == ["fourth"]
        assert corpus.notes == ("skipped in folders: 1 without rows",)

    def test_documents_are_separated(self, tmp_path: Path) -> None:
        texts = [f"{number} " * (3 + number) for number in range(9)]
        (tmp_path / "a.jsonl").write_bytes(rows(*texts))
        corpus = text(path=tmp_path / "a.jsonl", column="text", documents=True, val_fraction=0.3)
        data = corpus.prepare(build_tokenizer("char", corpus))
        assert isinstance(data, PreparedText)
        lengths = [len(text) for text in texts[:6]]
        assert data.train.document_starts.tolist() == [sum(lengths[:number]) for number in range(6)]

    def test_a_validation_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(rows("one", "two"))
        (tmp_path / "b.jsonl").write_bytes(rows("three"))
        corpus = text(path=tmp_path / "a.jsonl", validation=tmp_path / "b.jsonl", column="text")
        assert (documents(corpus, "train"), documents(corpus, "validation")) == (["one", "two"], ["three"])

    def test_the_fingerprint_follows_the_rows(self, tmp_path: Path) -> None:
        found = set()
        for texts in (("ab", "c"), ("a", "bc"), ("abc", "d")):
            (tmp_path / "a.jsonl").write_bytes(rows(*texts))
            found.add(text(path=tmp_path / "a.jsonl", column="text").fingerprint)
        assert len(found) == 3

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (
                rows("a") + b'\n{"story": "b"}',
                "line 2 has no text in column 'text' (found nothing): set data.column",
            ),
            (
                rows("a") + b'\n{"text": 3}',
                "line 2 has no text in column 'text' (found int): set data.column",
            ),
            (rows("a") + b'\n{"text": "\\ud800"}', "line 2 is not valid Unicode (half a surrogate pair): correct the"),
            (rows("a"), "the corpus has 1 rows in all, too few for training and validation: give more"),
        ],
    )
    def test_mistakes(self, content: bytes, sentence: str, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(DataError) as caught:
            text(path=tmp_path / "a.jsonl", column="text")
        assert sentence in str(caught.value) and "\n" not in str(caught.value)

    def test_no_rows_and_no_name(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("text")
        with pytest.raises(DataError, match=r"a\.txt' has no rows by its name: give a file that ends in \.jsonl"):
            text(path=tmp_path / "a.txt", column="text")
        with pytest.raises(ConfigError, match=r"data\.column must be the name of a column"):
            text(path=tmp_path / "a.txt", column="")

    @pytest.mark.parametrize("change", [rows("a", "b", "c", "d", "e"), rows("a", "b") + b"\n{", b""])
    def test_a_file_that_changes_while_it_is_read(self, change: bytes, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(rows("a", "b", "c", "d"))
        corpus = text(path=tmp_path / "a.jsonl", column="text")
        (tmp_path / "a.jsonl").write_bytes(change)
        with pytest.raises(DataError, match=r"a\.jsonl' changed while it was read"):
            documents(corpus, "train")


def test_a_run_reports_skipped_files(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b.txt").write_text("some text to learn from, " * 20)
    (folder / "copy.txt").write_text("some text to learn from, " * 20)
    model = {"d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 8}
    trainer = {"max_steps": 1, "sample_tokens": 0, "eval_batches": 1, "device": "cpu", "compile": False, "threads": 1}
    data = {"name": "text", "path": str(folder)}
    train(RunConfig(model=model, trainer=trainer, data=data, runs=str(tmp_path / "runs")))
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Text"))
    assert [line.strip() for line in lines[start + 1 : start + 3]] == [
        "skipped in folders: 2 hidden, 2 binary",
        "files left out, equal to earlier ones: 1",
    ]
