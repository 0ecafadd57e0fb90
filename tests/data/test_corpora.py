"""Corpora: files, splits and order of the text."""

import hashlib
import importlib
import io
import itertools
import json
import os
import sys
import sysconfig
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.core.registry import decode, encode, entries
from modular_gpt.data import SPLITS, Corpus, build_corpus
from modular_gpt.data.corpora import files, huggingface, python_stdlib, shakespeare
from modular_gpt.data.corpora.base import chunk_text
from tests.data.conftest import PLAY
from tests.fresh import python


def text_of(corpus: Corpus, split: str) -> str:
    return "".join(chunk.text for chunk in corpus.documents(split))


def test_every_registered_corpus_is_tested() -> None:
    tested = {"python_stdlib", "shakespeare", "text", "hf", "records", "synthetic", "tokens", "mixture", "preferences"}
    assert set(entries("data")) == tested


class TestCut:
    """Long texts are split into chunks."""

    @given(chunks=st.lists(st.text("ab \n", max_size=30)), limit=st.integers(2, 20))
    def test_chunks_are_the_text_and_within_the_limit(self, chunks: list[str], limit: int) -> None:
        found = list(chunk_text(chunks, limit))
        assert "".join(found) == "".join(chunks)
        assert all(0 < len(chunk) <= limit for chunk in found)

    def test_chunks_end_at_lines_then_at_words(self) -> None:
        assert list(chunk_text(["one two\nthree four\nfive"], 12)) == ["one two\n", "three four\n", "five"]
        assert list(chunk_text(["one two three"], 9)) == ["one two", " three"]
        assert list(chunk_text(["a\n\n\nb\n  c"], 5)) == ["a\n\n\nb", "\n  c"]  # no split between two white spaces

    @pytest.mark.parametrize("encoding", ["gpt2", "cl100k_base", "o200k_base"])
    def test_chunks_have_the_tokens_of_the_whole(self, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the published patterns: tokens never cross their matches."""
        public = importlib.import_module("tiktoken_ext.openai_public")
        for load in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
            monkeypatch.setattr(public, load, lambda *_, **__: dict.fromkeys(range(50256)))
        split = regex.compile(getattr(public, encoding)()["pat_str"]).findall
        letters = st.text("aBé1", min_size=1, max_size=3)
        anything = st.text("aé1.;/'#", min_size=1, max_size=3)
        fragments = st.lists(
            st.tuples(anything, letters, anything, st.sampled_from(" \n"), st.sampled_from([" ", "\n", "\n\n"]))
        )

        @given(fragments=fragments)
        def check(fragments: list[tuple[str, str, str, str, str]]) -> None:
            text = "".join(f"{a}{gap}{b}{c}{white}" for a, b, c, gap, white in fragments)
            chunks = list(chunk_text([text], 24))
            assert [token for chunk in chunks for token in split(chunk)] == split(text)

        check()


class TestPythonStdlib:
    """The default corpus."""

    def test_the_rules(self) -> None:
        """The files equal those of a second implementation of the rules."""
        root = Path(sysconfig.get_paths()["stdlib"])
        left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "ensurepip"}
        left_out |= {"encodings", "pydoc_data", "__pycache__"}
        expected: dict[str, dict[str, Path]] = {split: {} for split in SPLITS}
        for path in root.rglob("*.py"):
            name = path.relative_to(root).as_posix()
            folders = name.split("/")[:-1]
            if not left_out & set(folders) and not any(folder.startswith("config-") for folder in folders):
                held_out = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % 10 == 0
                expected["validation" if held_out else "train"][name] = path
        corpus = build_corpus("python_stdlib")
        for split in SPLITS:
            names = list(dict.fromkeys(chunk.document for chunk in corpus.documents(split)))
            filled = [name for name in sorted(expected[split]) if expected[split][name].stat().st_size]
            assert names == filled
            assert text_of(corpus, split) == "".join(expected[split][name].read_bytes().decode() for name in filled)

    def test_the_recorded_description(self) -> None:
        info = build_corpus("python_stdlib").describe()
        assert info["python"] == ".".join(map(str, sys.version_info[:3]))
        assert 300 < info["files"] < 700 and 7e6 < info["bytes"] < 11e6

    def test_a_file_keeps_its_split(self) -> None:
        names = [
            "ast.py",
            "os.py",
            "json/decoder.py",
            "bisect.py",
            "abc.py",
            "heapq.py",
            "random.py",
            "typing.py",
            "glob.py",
        ]
        assert [name for name in names if python_stdlib.for_validation(name)] == ["ast.py"]
        share = sum(python_stdlib.for_validation(f"module{number}.py") for number in range(5000)) / 5000
        assert 0.08 < share < 0.12

    def test_another_process_reads_the_same(self) -> None:
        code = "from modular_gpt.data import build_corpus; print(build_corpus('python_stdlib').fingerprint)"
        root = Path(__file__).resolve().parents[2]
        other = python("-c", code, cwd=root)
        assert other.stdout.strip() == build_corpus("python_stdlib").fingerprint

    def test_stripped_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "os.py").write_text("import sys\n")
        (tmp_path / "os.pyc").write_bytes(b"\0\1")
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
        with pytest.raises(DataError) as caught:
            build_corpus("python_stdlib")
        assert str(caught.value) == (
            f"the sources of Python's standard library are missing (found 1 files in {tmp_path}):"
            " use a text of your own with data=text data.path=<file or pattern>"
        )

    def test_a_changed_file_changes_the_fingerprint(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for number in range(120):
            (tmp_path / f"m{number}.py").write_text(f"x = {number}\n")
        monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
        before = build_corpus("python_stdlib").fingerprint
        assert build_corpus("python_stdlib").fingerprint == before
        (tmp_path / "m7.py").write_text("x = 8\n")
        assert build_corpus("python_stdlib").fingerprint != before


class TestText:
    """Files of the user's own."""

    @pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
    @pytest.mark.parametrize("length", [2, 9, 10, 11, 999])
    def test_one_file_splits_as_in_nanogpt(
        self, length: int, fraction: float, text_corpus: Callable[..., Corpus]
    ) -> None:
        text = (PLAY * 2)[:length]
        corpus = text_corpus(text, val_fraction=fraction)
        n = int(len(text) * (1 - fraction))
        assert text_of(corpus, "train") == text[:n]
        assert text_of(corpus, "validation") == text[n:]

    def test_shakespeare_splits_as_in_nanogpt(self, shakespeare_path: Path) -> None:
        corpus = build_corpus({"name": "text", "path": str(shakespeare_path)})
        text = shakespeare_path.read_text(encoding="utf-8")
        n = len(text)
        assert text_of(corpus, "train") == text[: int(n * 0.9)]
        assert text_of(corpus, "validation") == text[int(n * 0.9) :]

    @given(
        texts=st.lists(st.text("aé🙂\n", max_size=15), min_size=1, max_size=5),
        fraction=st.floats(0.01, 0.99),
        block=st.integers(1, 7),
    )
    def test_many_files_are_one_long_text(
        self, texts: list[str], fraction: float, block: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Also if multi-byte characters cross the blocks of reading."""
        folder = tmp_path_factory.mktemp("many")
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_bytes(text.encode())
        whole = "".join(texts)
        n = int(len(whole) * (1 - fraction))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("modular_gpt.data.corpora.files.BLOCK", block)
            config = {"name": "text", "path": str(folder / "*.txt"), "val_fraction": fraction, "deduplicate": False}
            if not 0 < n < len(whole):
                with pytest.raises(DataError, match="too few for training and validation"):
                    build_corpus(config)
                return
            corpus = build_corpus(config)
            assert (text_of(corpus, "train"), text_of(corpus, "validation")) == (whole[:n], whole[n:])

    @pytest.mark.parametrize("block", [1, 2, 3, 7, 2**20])
    def test_a_byte_order_mark_and_windows_line_ends(
        self, block: int, text_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both are removed; other line separators and byte order marks inside a file stay."""
        monkeypatch.setattr(files, "BLOCK", block)
        text = "\ufeffa\r\nb\rc\u2028d\r\n\r\né\ufeff\r" * 2
        clean = "a\r\nb\rc\u2028d\r\n\r\né\ufeff\r\ufeffa\r\nb\rc\u2028d\r\n\r\né\ufeff\r".replace("\r\n", "\n")
        corpus = text_corpus(text)
        assert text_of(corpus, "train") + text_of(corpus, "validation") == clean
        assert corpus.fingerprint == text_corpus(clean).fingerprint

    def test_three_files_with_marks_have_none_inside(self, text_corpus: Callable[..., Corpus]) -> None:
        corpus = text_corpus(*["\ufeffone two three\r\n"] * 3, deduplicate=False)
        assert text_of(corpus, "train") + text_of(corpus, "validation") == "one two three\n" * 3

    def test_a_file_by_several_spellings_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        text = "".join(f"line {number}\n" for number in range(40))
        (tmp_path / "a.txt").write_text(text)
        (tmp_path / "folder").mkdir()
        (tmp_path / "link.txt").symlink_to("a.txt")
        os.link(tmp_path / "a.txt", tmp_path / "hard.txt")
        paths = ["a.txt", str(tmp_path / "a.txt"), "folder/../a.txt", "~/a.txt", "*.txt", Path("link.txt")]
        for first, second in itertools.product(paths, repeat=2):
            corpus = build_corpus({"name": "text", "path": [first, second]})
            assert text_of(corpus, "train") + text_of(corpus, "validation") == text

    def test_a_path_may_be_a_path(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("some text\n" * 9)
        config = decode("data", {"name": "text", "path": tmp_path / "a.txt"})
        assert encode(config)["path"] == str(tmp_path / "a.txt")
        assert config.build().describe()["files"] == 1
        assert json.dumps(encode(decode("data", {"name": "text", "path": [tmp_path / "a.txt"]})))

    def test_patterns(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("b.txt", "a.txt", "sub/deep/c.txt", "sub/d.md", "[x].txt"):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} " * 10)
        (tmp_path / "folder.txt").mkdir()
        monkeypatch.chdir(tmp_path)

        def names(path: str | list[str]) -> list[str]:
            corpus = build_corpus({"name": "text", "path": path, "val_fraction": 0.01})
            assert corpus.describe()["files"] == len({chunk.document for s in SPLITS for chunk in corpus.documents(s)})
            return list(dict.fromkeys(chunk.document for split in SPLITS for chunk in corpus.documents(split)))

        assert names("*.txt") == ["[x].txt", "a.txt", "b.txt"]  # sorted, without the subfolder
        assert names("**/*.txt") == ["[x].txt", "a.txt", "b.txt", "sub/deep/c.txt"]
        assert names(["sub/*.md", "b.txt", "*.txt"]) == ["sub/d.md", "b.txt", "[x].txt", "a.txt"]  # each once
        assert names("[x].txt") == ["[x].txt"]  # a file of that name takes precedence over the pattern
        assert names(str(tmp_path / "sub" / "d.md")) == [str(tmp_path / "sub" / "d.md")]

    def test_the_fingerprint_follows_the_text_and_its_split(
        self, text_corpus: Callable[..., Corpus], tmp_path: Path
    ) -> None:
        before = text_corpus(PLAY).fingerprint
        (tmp_path / "moved.txt").write_bytes(PLAY.encode())
        assert build_corpus({"name": "text", "path": str(tmp_path / "moved.txt")}).fingerprint == before
        different = [text_corpus(PLAY, val_fraction=0.2), text_corpus(PLAY + "."), text_corpus(PLAY, "more")]
        assert len({before, *(corpus.fingerprint for corpus in different)}) == 4

    def test_a_file_that_changes_while_it_is_read(self, play: Corpus, tmp_path: Path) -> None:
        (tmp_path / "text0.txt").write_text(PLAY + "more")
        with pytest.raises(DataError, match=r"text0.txt' changed while it was read: start again when nothing writes"):
            text_of(play, "train")


class TestShakespeare:
    """The download, without a network."""

    @pytest.fixture
    def answer(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | Exception], list[str]]:
        def install(content: bytes | Exception) -> list[str]:
            asked: list[str] = []

            def urlopen(url: str, timeout: float) -> io.BytesIO:
                asked.append(url)
                if isinstance(content, Exception):
                    raise content
                return io.BytesIO(content)

            monkeypatch.setattr(urllib.request, "urlopen", urlopen)
            return asked

        return install

    def test_downloaded_once(
        self, answer: Callable[[bytes | Exception], list[str]], shakespeare_path: Path, cache: Path
    ) -> None:
        asked = answer(shakespeare_path.read_bytes())
        first, second = build_corpus("shakespeare"), build_corpus("shakespeare")
        assert asked == [shakespeare.URL]
        assert first.fingerprint == second.fingerprint
        assert [path.name for path in (cache / "shakespeare").iterdir()] == ["tinyshakespeare.txt"]

    def test_a_copy_of_the_user(self, answer: Callable[[bytes | Exception], list[str]], shakespeare_path: Path) -> None:
        asked = answer(urllib.error.URLError("offline"))
        corpus = build_corpus({"name": "shakespeare", "path": str(shakespeare_path)})
        assert not asked and len(text_of(corpus, "validation")) == 111540

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (urllib.error.URLError("offline"), "<urlopen error offline>"),
            (TimeoutError("timed out"), "timed out"),
            (b"log in", f"SHA-256 {hashlib.sha256(b'log in').hexdigest()[:12]}... instead of 86c4e6aa9db7..."),
        ],
    )
    def test_offline_the_message_names_the_path_of_the_file(
        self, content: bytes | Exception, reason: str, answer: Callable[[bytes | Exception], list[str]], cache: Path
    ) -> None:
        answer(content)
        place = cache / "shakespeare" / "tinyshakespeare.txt"
        with pytest.raises(DataError) as caught:
            build_corpus("shakespeare")
        assert str(caught.value) == (
            f"cannot download {shakespeare.URL} ({reason}): put the file at {place}, or use data=python_stdlib"
        )
        assert not place.exists()

    def test_a_file_placed_by_hand(
        self, answer: Callable[[bytes | Exception], list[str]], shakespeare_path: Path, cache: Path
    ) -> None:
        asked = answer(urllib.error.URLError("offline"))
        (cache / "shakespeare").mkdir(parents=True)
        place = cache / "shakespeare" / "tinyshakespeare.txt"
        place.write_bytes(shakespeare_path.read_bytes())
        build_corpus("shakespeare")
        assert not asked
        place.write_bytes(b"To be, or not to be")
        with pytest.raises(DataError) as caught:
            build_corpus("shakespeare")
        assert str(caught.value).startswith(f"'{place}' is not tiny Shakespeare (SHA-256 ")
        assert str(caught.value).endswith("): remove it, or read it with data=text")


class TestHuggingFace:
    """Streamed datasets, with a fake ``datasets`` package and once with the real one."""

    @pytest.fixture
    def datasets(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """Install the fake package; returns the recorded calls."""
        calls: list[dict[str, Any]] = []

        def load_dataset(path: str, subset: str | None, **options: Any) -> Iterator[dict[str, Any]]:
            calls.append({"path": path, "subset": subset, **options})
            if options["split"] not in ("train", "test"):
                raise ValueError(f"Bad split: {options['split']}.\nAvailable: train, test")
            yield from ({"text": f"{options['split']} {number}\n", "label": number} for number in range(200))

        module = types.ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        info = types.SimpleNamespace(sha="c0ffee")
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, path, revision: info)
        return calls

    def test_a_fraction_of_the_documents_is_for_validation(self, datasets: list[dict[str, Any]]) -> None:
        corpus = build_corpus({"name": "hf", "path": "someone/stories"})
        train, validation = ([chunk.text for chunk in corpus.documents(split)] for split in SPLITS)
        assert sorted(train + validation) == sorted(f"train {number}\n" for number in range(200))
        assert 10 <= len(validation) <= 30
        assert train == [chunk.text for chunk in corpus.documents("train")]
        assert datasets[0] == {
            "path": "someone/stories",
            "subset": None,
            "split": "train",
            "streaming": True,
            "revision": "c0ffee",
        }

    def test_a_validation_split_of_the_dataset(self, datasets: list[dict[str, Any]]) -> None:
        settings = {"name": "hf", "path": "someone/stories", "validation_split": "test", "max_documents": 3}
        corpus = build_corpus({**settings, "subset": "en"})
        assert text_of(corpus, "train") == "train 0\ntrain 1\ntrain 2\n"
        assert text_of(corpus, "validation") == "test 0\ntest 1\ntest 2\n"
        assert datasets[0]["subset"] == "en"
        assert corpus.describe() == {"dataset": "someone/stories", "revision": "c0ffee"}

    def test_the_fingerprint_follows_the_commit_and_the_settings(
        self, datasets: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fingerprint(**settings: object) -> str:
            return build_corpus({"name": "hf", "path": "someone/stories", **settings}).fingerprint

        same = fingerprint()
        assert same == fingerprint()
        others = [fingerprint(subset="en"), fingerprint(max_documents=3), fingerprint(val_fraction=0.2)]
        newer = types.SimpleNamespace(sha="decaf")
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, path, revision: newer)
        assert len({same, *others, fingerprint()}) == 5

    def test_mistakes(self, datasets: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match=r"data=hf needs data.path=<dataset>"):
            build_corpus("hf")
        with pytest.raises(ConfigError) as caught:
            text_of(build_corpus({"name": "hf", "path": "someone/stories", "column": "story"}), "train")
        assert str(caught.value) == (
            "dataset 'someone/stories' has no text in column 'story': set data.column to one of text, label"
        )
        with pytest.raises(DataError) as wrong:
            text_of(build_corpus({"name": "hf", "path": "someone/stories", "train_split": "trian"}), "train")
        assert str(wrong.value) == (
            "cannot read split 'trian' of dataset 'someone/stories' (Bad split: trian.):"
            " check data.train_split, data.validation_split and data.subset"
        )

        def offline(*_: object, **__: object) -> None:
            raise ConnectionError("offline")

        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
        with pytest.raises(DataError) as absent:
            build_corpus({"name": "hf", "path": "someone/stories"})
        assert str(absent.value) == (
            "cannot find dataset 'someone/stories' on the Hugging Face hub (offline):"
            " check data.path and the network, or use data=text with files of your own"
        )

    def test_the_package_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ConfigError) as caught:
            build_corpus({"name": "hf", "path": "someone/stories"})
        assert str(caught.value) == "data=hf needs the package 'datasets': pip install 'modular-gpt[data]'"

    def test_a_local_directory_with_the_real_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("datasets")
        rows = [json.dumps({"text": f"story {number} é\n"}) for number in range(50)]
        (tmp_path / "stories").mkdir()
        (tmp_path / "stories" / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
        config = {"name": "hf", "path": str(tmp_path / "stories")}
        corpus = build_corpus(config)
        assert sorted(chunk.text for split in SPLITS for chunk in corpus.documents(split)) == sorted(
            f"story {number} é\n" for number in range(50)
        )
        (tmp_path / "stories" / "train.jsonl").write_text("\n".join(rows[1:]), encoding="utf-8")
        assert build_corpus(config).fingerprint != corpus.fingerprint


def test_a_long_document_of_a_dataset_is_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = object.__new__(huggingface.HuggingFace)
    corpus.config = huggingface.HuggingFace.Config(validation_split="test")
    monkeypatch.setattr(huggingface.HuggingFace, "_texts", lambda self, split: iter(["line\n" * 60_000, "short"]))
    chunks = list(corpus.documents("train"))
    assert [chunk.document for chunk in chunks] == ["train/0"] * 3 + ["train/1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("python_stdlibb", "no data 'python_stdlibb'; did you mean 'python_stdlib'?"),
        ("text", "data=text needs data.path=<file or pattern>, such as data.path='corpus/**/*.txt'"),
        ({"name": "text", "path": []}, "data=text needs data.path=<file or pattern>"),
        ({"name": "text", "path": 3}, "data.path must be a path, a pattern or a list of these, got 3"),
        ({"name": "text", "path": ["a", 3]}, "data.path must be a path, a pattern or a list of these, got ['a', 3]"),
        ({"name": "text", "pth": "x"}, "data: no setting 'pth'; did you mean 'path'?"),
        ({"name": "text", "path": "x", "val_fraction": 0}, "data.val_fraction must lie between 0 and 1, got 0"),
        ({"name": "shakespeare", "val_fraction": 1.0}, "data.val_fraction must lie between 0 and 1, got 1.0"),
        ({"name": "hf", "path": "x", "max_documents": 0}, "data.max_documents must be above 0, got 0"),
        (
            {"name": "python_stdlib", "path": "x"},
            "data=python_stdlib has no setting 'path'; use it with hf or preferences or records or shakespeare or text",
        ),
    ],
)
def test_wrong_settings_get_one_sentence(settings: str | dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_corpus(settings)
    assert str(caught.value).startswith(message)
