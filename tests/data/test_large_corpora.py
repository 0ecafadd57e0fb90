"""Large corpora: bounded memory, and the same tokens with chunks, samples and faster encoders."""

import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modular_gpt.core.errors import ConfigError
from modular_gpt.data import Corpus, build_corpus, build_tokenizer, prepare
from modular_gpt.data.corpora.base import TextChunk, chunk_text
from modular_gpt.data.prepare import encode_documents
from modular_gpt.data.tokenizers import with_former_defaults
from modular_gpt.data.tokenizers.base import END_OF_TEXT, training_texts
from modular_gpt.data.tokenizers.byte_level import trained_encoding
from modular_gpt.data.tokenizers.library import LibraryTokenizer
from modular_gpt.data.tokenizers.trained import BPETokenizer, without_long_words
from tests.data.conftest import PLAY
from tests.data.test_prepare import fork, status_of

WORDS = ("ab", "c", "don't", "12", "3rd", "é", "x--y", "日本", "Speak,", "end.")
PARTS = (
    "the",
    "sp",
    "eak",
    "aa",
    "a",
    "ab",
    "Cit",
    "izen",
    " ",
    "\n",
    "'s",
    END_OF_TEXT,
)  # fragments to be joined to words


class Held(str):
    """A text that counts the live instances and their characters."""

    living: ClassVar[Counter[str]] = Counter()

    def __new__(cls, text: str) -> "Held":
        cls.living["characters"] += len(text)
        cls.living["peak"] = max(cls.living["peak"], cls.living["characters"])
        return super().__new__(cls, text)

    def __del__(self) -> None:
        self.living["characters"] -= len(self)


class Counted(Corpus):
    """A corpus of chunks of 100 characters, with known or unknown total."""

    def __init__(self, chunks: int, known: bool = True) -> None:
        self.chunks, self.known = chunks, known

    def documents(self, split: str) -> Iterator[TextChunk]:
        for number in range(self.chunks if split == "train" else 3):
            yield TextChunk(str(number // 4), Held(f"{number:<5} {'word ' * 20}"[:100]))

    def characters(self, split: str) -> int | None:
        return 100 * (self.chunks if split == "train" else 3) if self.known else None

    @property
    def fingerprint(self) -> str:
        return str(self.chunks)

    def describe(self) -> Mapping[str, int | str]:
        return {}


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "play.txt").write_text(PLAY * 3, encoding="utf-8")
    corpus = build_corpus({"name": "text", "path": str(folder / "play.txt")})
    found = build_tokenizer({"name": "bpe", "vocab_size": 500}, corpus, folder / "cache")
    assert isinstance(found, BPETokenizer)
    return found


def by_library(tokenizer: LibraryTokenizer, texts: list[str]) -> list[list[int]]:
    encodings = tokenizer._tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


class TestMemory:
    """A bounded number of characters is held for texts of any length."""

    @pytest.mark.parametrize("tokenizer_name", ["byte", "bpe"])
    def test_encoding_holds_three_batches(
        self, tokenizer_name: str, bpe: BPETokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules["modular_gpt.data.prepare"], "BATCH", 1000)
        tokenizer = bpe if tokenizer_name == "bpe" else build_tokenizer(tokenizer_name)
        peaks = []
        for chunks in (100, 400):
            Held.living.clear()
            data = prepare(Counted(chunks), tokenizer)
            assert data.manifest["splits"]["train"]["bytes"] == 100 * chunks
            peaks.append(Held.living["peak"])
        assert peaks[0] == peaks[1] <= 3 * 1000 + 100

    def test_tokenizer_training_holds_three_chunks(self) -> None:
        Held.living.clear()
        with training_texts(Counted(300), "bpe") as texts:
            assert sum(map(len, texts)) == 30_000
        assert Held.living["peak"] <= 300

    def test_files_are_read_in_blocks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Number of characters decoded at a time from a file with a single line."""
        monkeypatch.setattr("modular_gpt.data.corpora.files.BLOCK", 500)
        (tmp_path / "line.txt").write_text("word " * 2000)
        corpus = build_corpus({"name": "text", "path": str(tmp_path / "line.txt")})
        monkeypatch.setattr("modular_gpt.data.corpora.files.chunk_text", lambda texts: chunk_text(texts, 300))
        chunks = [chunk.text for chunk in corpus.documents("train")]
        assert "".join(chunks) == "word " * 1800
        assert max(map(len, chunks)) <= 300


class TestSample:
    """A tokenizer is trained on chunks that are spread evenly over a long text."""

    def texts(self, corpus: Corpus, limit: int | None) -> list[int]:
        """Indices of the chunks that are read."""
        with training_texts(corpus, "bpe", limit) as texts:
            return [int(text.split()[0]) for text in texts]

    @pytest.mark.parametrize("limit", [None, 10_000, 2**27])
    def test_a_short_text_is_read_whole(self, limit: int | None) -> None:
        assert self.texts(Counted(100), limit) == list(range(100))

    @pytest.mark.parametrize("limit", [100, 1000, 2500, 9900])
    def test_a_long_text_is_sampled_evenly(self, limit: int) -> None:
        found = np.array(self.texts(Counted(100), limit))
        assert limit <= 100 * len(found) <= limit + 100
        expected = np.arange(len(found)) * 100 / (limit / 100)
        assert np.abs(found - expected).max() <= 1

    def test_a_text_of_unknown_length_is_read_from_its_beginning(self) -> None:
        assert self.texts(Counted(100, known=False), 1000) == list(range(10))
        assert self.texts(Counted(5, known=False), 1000) == list(range(5))

    @pytest.mark.parametrize("tokenizer_name", ["bpe", "wordpiece"])
    def test_the_setting(self, tokenizer_name: str) -> None:
        settings = {"name": tokenizer_name, "vocab_size": 600}
        whole = build_tokenizer(settings, Counted(100))
        assert build_tokenizer({**settings, "sample_characters": None}, Counted(100)).fingerprint == whole.fingerprint
        few = build_tokenizer({**settings, "sample_characters": 500}, Counted(100))
        assert few.fingerprint != whole.fingerprint
        with pytest.raises(ConfigError, match="sample_characters must be above 0, got 0"):
            build_tokenizer({**settings, "sample_characters": 0}, Counted(100))

    def test_runs_of_former_versions_train_on_the_whole_text(self) -> None:
        for tokenizer_name in ("bpe", "wordpiece", "sentencepiece"):
            assert with_former_defaults({"name": tokenizer_name, "vocab_size": 9}) == {
                "name": tokenizer_name,
                "vocab_size": 9,
                "sample_characters": None,
            }
            now = {"name": tokenizer_name, "sample_characters": 5}
            assert with_former_defaults(now) == now
        for other in ({"name": "char", "unknown": "unk"}, {"name": "toy"}, {}):
            assert with_former_defaults(other) == other


class TestLongWords:
    """Training takes minutes for a word of 100,000 characters, so long words are split."""

    @pytest.mark.parametrize("text", ["x" * 3500, "1" * 1000, " \n" * 700 + "x", "a b" * 900, "#-" * 600 + "a" * 999])
    def test_only_long_words_are_split(self, text: str) -> None:
        found = list(without_long_words(["before", text, ""]))
        assert "".join(found) == f"before{text}"
        assert all(len(re.findall(r"\S+|\s+", chunk)[0]) <= 2000 for chunk in found if chunk)
        assert [len(chunk) for chunk in without_long_words(["x" * 3500])] == [1000, 1000, 1000, 500]
        assert list(without_long_words(["a b" * 900])) == ["a b" * 900]

    def test_bpe_is_trained_on_a_file_of_one_word(self, text_corpus: Callable[..., Corpus]) -> None:
        """The library receives short words only, so training is fast."""
        corpus = text_corpus("x" * 140_000)
        tokenizer = build_tokenizer({"name": "bpe", "vocab_size": 300}, corpus)
        assert tokenizer.decode(tokenizer.encode("x" * 5000)) == "x" * 5000


class TestBPE:
    """tiktoken gives the ids of the tokenizers library."""

    @given(text=st.text(st.characters(codec="utf-8"), max_size=60))
    def test_of_any_text(self, bpe: BPETokenizer, text: str) -> None:
        assert bpe._encoding is not None
        assert bpe.encode(text) == by_library(bpe, [text])[0]

    @given(
        words=st.lists(
            st.sampled_from(["the", "sp", "eak", "aa", "a", "ab", "Cit", "izen", " ", "\n", "'s", END_OF_TEXT])
        )
    )
    def test_of_text_with_many_merges(self, bpe: BPETokenizer, words: list[str]) -> None:
        assert bpe.encode("".join(words)) == by_library(bpe, ["".join(words)])[0]

    def test_of_every_kind_of_character(self, bpe: BPETokenizer) -> None:
        """Up to 300 characters of each Unicode category, between letters, digits, spaces and marks."""
        by_category: dict[str, list[str]] = {}
        for code in (code for code in range(0x110000) if not 0xD800 <= code < 0xE000):
            found = by_category.setdefault(unicodedata.category(chr(code)), [])
            if len(found) < 300:
                found.append(chr(code))
        texts = [f"a{c}b 1{c}2 {c} {c}x !{c}!{c}" for found in by_category.values() for c in found]
        assert [ids.tolist() for ids in bpe.encode_many(texts)] == by_library(bpe, texts)

    def test_an_unsupported_definition_is_encoded_by_the_library(self, bpe: BPETokenizer) -> None:
        content = bpe.definition()["tokenizer"]
        model, merges = content["model"], content["model"]["merges"]
        assert trained_encoding(content, END_OF_TEXT) is not None
        others: list[dict[str, Any]] = [
            {"normalizer": {"type": "NFC"}},
            {"pre_tokenizer": {**content["pre_tokenizer"], "add_prefix_space": True}},
            {"pre_tokenizer": {"type": "Whitespace"}},
            {"model": {**model, "ignore_merges": True}},
            {"model": {**model, "merges": [*merges[1:], merges[0]]}},
            {"added_tokens": [*content["added_tokens"], {**content["added_tokens"][0], "id": 300, "content": "x"}]},
        ]
        for other in others:
            assert trained_encoding({**content, **other}, END_OF_TEXT) is None
        plain = BPETokenizer.from_definition({**bpe.definition(), "tokenizer": {**content, **others[0]}})
        assert plain._encoding is None
        assert plain.encode("Speak, e\u0301.") == by_library(plain, ["Speak, e\u0301."])[0]


class TestChunks:
    """Text is chunked where the tokenizers split it."""

    @pytest.mark.parametrize("tokenizer_name", ["byte", "char", "bpe", "wordpiece", "gpt2"])
    @pytest.mark.parametrize("seed", range(3))
    def test_tokens_equal_those_of_the_whole_text(
        self, tokenizer_name: str, seed: int, bpe: BPETokenizer, request: pytest.FixtureRequest, tmp_path: Path
    ) -> None:
        random = np.random.default_rng(seed)
        marks = random.choice(["\n", " ", "  ", "\n\n", "\n    ", "\r\n", "\t"], 2000, p=[0.2, 0.6, *[0.04] * 5])
        text = "".join(word + mark for word, mark in zip(random.choice(WORDS, 2000), marks, strict=True))
        if tokenizer_name == "gpt2":
            request.getfixturevalue("tiktoken_cache")
        (tmp_path / "text.txt").write_text(text + text, encoding="utf-8", newline="")
        corpus = build_corpus({"name": "text", "path": str(tmp_path / "text.txt")})
        settings = {"name": "char", "characters": text} if tokenizer_name == "char" else {"name": tokenizer_name}
        tokenizer = bpe if tokenizer_name == "bpe" else build_tokenizer(settings, corpus)
        chunks = [TextChunk("one", chunk) for chunk in chunk_text([text], 100)]
        assert len(chunks) > 60
        found = np.concatenate([ids for ids, _ in encode_documents(chunks, tokenizer)])
        assert found.tolist() == tokenizer.encode(text)

    @given(texts=st.lists(st.text("ab \n", max_size=30), max_size=8), limit=st.integers(1, 12))
    def test_chunks_are_the_text(self, texts: list[str], limit: int) -> None:
        chunks = list(chunk_text(texts, limit))
        assert "".join(chunks) == "".join(texts)
        assert all(0 < len(chunk) <= limit for chunk in chunks)
        assert list(chunk_text(["".join(texts)], limit)) == chunks


class TestProcesses:
    """Of several concurrent processes one works and the others wait for it."""

    @pytest.mark.parametrize("tokenizer_name", ["byte", "bpe"])
    def test_the_work_is_done_once(
        self, tokenizer_name: str, text_corpus: Callable[..., Corpus], cache: Path, tmp_path: Path
    ) -> None:
        corpus = text_corpus("one two\n" * 50)
        name = "tokenizers.build" if tokenizer_name == "bpe" else "token_cache"
        module = sys.modules[f"modular_gpt.data.{name}"]

        def work(number: int) -> None:
            builder = "new_in_cache"
            first = getattr(module, builder)

            def building(*arguments: Any) -> Any:
                (tmp_path / f"built{number}").touch()
                while len(list(tmp_path.glob("waits*"))) < 2:
                    pass
                return first(*arguments)

            setattr(module, builder, building)
            log = SimpleNamespace(info=lambda *_: (tmp_path / f"waits{number}").touch())
            sys.modules["modular_gpt.data.cache_dir"].log = log  # type: ignore[attr-defined]
            tokenizer = build_tokenizer(tokenizer_name, corpus)
            if tokenizer_name == "byte":
                assert prepare(corpus, tokenizer).train.count > 0

        children = [fork(lambda number=number: work(number)) for number in range(3)]  # type: ignore[misc]
        assert [status_of(child) for child in children] == [0] * 3
        assert len(list(tmp_path.glob("built*"))) == 1

    def test_a_killed_process_holds_no_lock(self, text_corpus: Callable[..., Corpus]) -> None:
        corpus = text_corpus("one two\n" * 50)

        def die() -> None:
            sys.modules["modular_gpt.data.prepare"]._build = lambda *_: os.kill(os.getpid(), 9)  # type: ignore[attr-defined]
            prepare(corpus, build_tokenizer("byte"))

        assert status_of(fork(die)) == -9
        assert prepare(corpus, build_tokenizer("byte")).train.count == 360

    def test_preparation_without_locks(
        self, text_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a file system without locks."""
        corpus = text_corpus("one two\n" * 50)

        def none(handle: int) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr("modular_gpt.core.atomic_files._lock", none)
        assert prepare(corpus, build_tokenizer("byte")).train.count == 360
