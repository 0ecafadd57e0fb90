"""A separate cache for each test, and small corpora."""

from collections.abc import Callable
from pathlib import Path

import pytest

from modular_gpt.data import Corpus, build_corpus

PLAY = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"
    "def name(x):  # «é», 日本語, 🙂\n\treturn x + 1 #### end\n"
) * 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of the test, instead of the user's."""
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Function that builds a text corpus with one file per text."""

    def make(*texts: str, **settings: object) -> Corpus:
        paths = [tmp_path / f"text{number}.txt" for number in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_bytes(text.encode())
        return build_corpus({"name": "text", "path": [str(path) for path in paths], **settings})

    return make


@pytest.fixture
def play(text_corpus: Callable[..., Corpus]) -> Corpus:
    """A short text with varied characters."""
    return text_corpus(PLAY)
