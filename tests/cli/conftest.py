"""Commands are called in this process, in an empty folder, and their output is caught."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modular_gpt.cli import generate, train

MAINS = {"train": train.main, "generate": generate.main}
TINY = (
    *("model_size.d_model=16", "model_size.n_heads=2", "model_size.n_layers=1", "model_size.context_length=16"),
    *("trainer.max_steps=2", "trainer.batch_size=2", "trainer.eval_interval=2", "trainer.eval_batches=1"),
    *("trainer.sample_tokens=4", "trainer.final_evaluation=false", "trainer.threads=1", "trainer.device=cpu"),
)


@dataclass
class Answer:
    """What a command said: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def corpus(folder: Path) -> str:
    """The words that choose a small text of one's own."""
    (folder / "text.txt").write_text("the cat sat on the mat. " * 60)
    return "data=text data.path=text.txt tokenizer=char"


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call a command with words: run("train", "attention=gqa")."""

    def call(command: str, *words: str) -> Answer:
        capsys.readouterr()
        code = MAINS[command](words)
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    yield call


@pytest.fixture
def trained(run: Run, corpus: str) -> Answer:
    """A run of two steps in ``runs``, of a model whose positions end with its context of 16."""
    answer = run("train", *corpus.split(), *TINY, "pos=learned")
    assert answer.code == 0, answer.err
    return answer
