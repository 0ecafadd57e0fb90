"""Bad data gets one sentence with the mistake, its location and the remedy, before training starts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modular_gpt.core.errors import DataError
from modular_gpt.data import BatchSource, Corpus, build_corpus, build_tokenizer, prepare

LATIN1 = "na\xefve".encode("latin-1")
TEXT = "a line of text\n" * 20


def refused(path: Path | str | list[str], **settings: object) -> str:
    """The message with which a corpus is refused."""
    given = [str(item) for item in path] if isinstance(path, list) else str(path)
    with pytest.raises(DataError) as caught:
        corpus = build_corpus({"name": "text", "path": given, **settings})
        data = prepare(corpus, build_tokenizer("byte"))
        for split in (data.train, data.validation):
            BatchSource(split, 8, 2, seed=0)
    message = str(caught.value)
    assert "\n" not in message and message[-1] != "."
    return message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"",
            "the corpus has 0 characters in all ('{path}'), too few for training and validation:"
            " give data.path more text",
        ),
        (
            b"x",
            "the corpus has 1 characters in all ('{path}'), too few for training and validation:"
            " give data.path more text",
        ),
        (b"abc\0def", "'{path}' has a NUL byte at offset 3, so it is no text: leave it out"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "'{path}' has a NUL byte at offset 8, so it is no text: leave it out"),
        (
            TEXT.encode("utf-16"),
            "'{path}' is UTF-16, not UTF-8, by its first bytes: convert it, iconv -f UTF-16 -t UTF-8",
        ),
        (TEXT.encode("utf-16-be"), "'{path}' has a NUL byte at offset 0, so it is no text: leave it out"),
        (
            TEXT.encode() + LATIN1,
            "'{path}' is not UTF-8 (byte 0xef at offset 302): convert it from the encoding it has,"
            " for example iconv -f LATIN1 -t UTF-8",
        ),
        (
            TEXT.encode() + "é".encode()[:1],
            "'{path}' is not UTF-8 (byte 0xc3 at offset 300): convert it from the encoding it has,"
            " for example iconv -f LATIN1 -t UTF-8",
        ),
        (
            b"\xed\xa0\x80 half a surrogate pair",
            "'{path}' is not UTF-8 (byte 0xed at offset 0): convert it from the encoding it has,"
            " for example iconv -f LATIN1 -t UTF-8",
        ),
        (
            b"0123456789",
            "the validation text has 1 tokens, but a context_length of 8 needs 9: give it more text",
        ),
        (
            b"0123456789" * 3,
            "the validation text has 3 tokens, but a context_length of 8 needs 9: give it more text"
            " or take context_length=2",
        ),
        (
            b"01234567",
            "the train text has 7 tokens, but a context_length of 8 needs 9: give it more text"
            " or take context_length=6",
        ),
    ],
)
def test_one_file(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    assert refused(path) == sentence.format(path=path)


def test_a_block_and_its_last_target_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"012345678" + b"abcdefghi")
    data = prepare(build_corpus({"name": "text", "path": str(path), "val_fraction": 0.5}), build_tokenizer("byte"))
    assert BatchSource(data.train, 8, 1, seed=0).batch(0)[0].tolist() == [list(b"01234567")]
    assert BatchSource(data.validation, 8, 1, seed=0).batch(0)[1].tolist() == [list(b"bcdefghi")]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 2**20])
@pytest.mark.parametrize("before", [0, 1, 7, 4093])
def test_the_offset_is_that_of_the_byte(
    before: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every block size of reading, also if a block ends inside a multi-byte character."""
    monkeypatch.setattr("modular_gpt.data.corpora.files.BLOCK", block)
    path = tmp_path / "corpus.txt"
    content = ("é🙂" * before).encode()
    path.write_bytes(content + b"\xff tail")
    assert f"'{path}' is not UTF-8 (byte 0xff at offset {len(content)})" in refused(path)
    path.write_bytes(content + "🙂".encode()[:3] + b"x")
    assert f"'{path}' is not UTF-8 (byte 0xf0 at offset {len(content)})" in refused(path)
    path.write_bytes(content + b"\0")
    assert f"'{path}' has a NUL byte at offset {len(content)}" in refused(path)


def test_among_many_files_the_bad_one_is_named(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(TEXT)
    (tmp_path / "3.txt").write_bytes(LATIN1)
    assert refused(tmp_path / "*.txt").startswith(f"'{tmp_path / '3.txt'}' is not UTF-8 (byte 0xef at offset 2)")


def test_an_empty_file_among_others_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text(TEXT)
    assert build_corpus({"name": "text", "path": str(tmp_path / "*.txt")}).describe() == {"files": 1, "bytes": 300}


def test_an_empty_directory(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"the folder '{tmp_path}' has no file to read: correct data.path"


def test_a_missing_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("none.txt") == f"there is no file 'none.txt' (seen from {tmp_path}): correct data.path"
    assert refused("**/*.txt") == f"no file matches '**/*.txt' (seen from {tmp_path}): correct data.path"
    (tmp_path / "folder.txt").mkdir()
    assert refused("*.txt") == f"no file matches '*.txt' (seen from {tmp_path}): correct data.path"


def test_a_broken_link(tmp_path: Path) -> None:
    link = tmp_path / "loop.txt"
    link.symlink_to(link)
    assert refused(link) == (
        f"cannot read '{link}' (Too many levels of symbolic links): make it readable or leave it out"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "secret.txt"
    path.write_text(TEXT)
    path.chmod(0)
    assert refused(path) == f"cannot read '{path}' (Permission denied): make it readable or leave it out"


def test_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)

    opened = os.open

    def denied(file: Any, *given: Any, **named: Any) -> int:
        if str(file) == str(path):
            raise PermissionError(13, "Permission denied")
        return opened(file, *given, **named)

    monkeypatch.setattr(os, "open", denied)
    assert refused(path) == f"cannot read '{path}' (Permission denied): make it readable or leave it out"


def test_ids_beyond_the_vocabulary(text_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, tokenizer = text_corpus(TEXT), build_tokenizer("byte")
    for wrong in (256, 70_000, -1):
        monkeypatch.setattr(
            type(tokenizer), "encode_many", lambda self, texts, wrong=wrong: [np.array([1, wrong]) for _ in texts]
        )
        with pytest.raises(DataError) as caught:
            prepare(corpus, tokenizer)
        assert str(caught.value).startswith(f"id {wrong} in document '")
        assert str(caught.value).endswith("its files do not belong together, or another tokenizer made the ids")


def test_a_character_unknown_to_the_saved_tokenizer(text_corpus: Callable[..., Corpus]) -> None:
    """A run with a saved char tokenizer is resumed on a text with a new character."""
    tokenizer = build_tokenizer("char", text_corpus(TEXT))
    with pytest.raises(DataError, match=r"character 'ß' \(U\+00DF\) at position .* leave it out, or train with"):
        prepare(text_corpus(TEXT + "ß" * 40), tokenizer)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are of Unix")
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"pipe\.txt' .it is not a regular file.: make it readable or leave it out"):
        build_corpus({"name": "text", "path": str(tmp_path / "pipe.txt")})
