"""Fixtures that run commands in this process, in an empty folder, and capture their output."""

import builtins
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from modular_gpt.cli import bench, compare, evaluate, generate, train

MAINS = {
    "bench": bench.main,
    "compare": compare.main,
    "eval": evaluate.main,
    "generate": generate.main,
    "train": train.main,
}
TINY = (
    *("model_size.d_model=16", "model_size.n_heads=2", "model_size.n_layers=1", "model_size.context_length=16"),
    *("trainer.max_steps=2", "trainer.batch_size=2", "trainer.eval_interval=2", "trainer.eval_batches=1"),
    *("trainer.sample_tokens=4", "trainer.final_evaluation=false", "trainer.threads=1", "trainer.device=cpu"),
)


@dataclass
class Answer:
    """Result of a command: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def corpus(folder: Path) -> str:
    """Command line arguments that select a small text file."""
    (folder / "text.txt").write_text("the cat sat on the mat. " * 60)
    return "data=text data.path=text.txt tokenizer=char"


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Call a command with arguments: run("train", "attention=gqa")."""

    def call(command: str, *arguments: str) -> Answer:
        capsys.readouterr()
        code = MAINS[command](arguments)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    yield call


@pytest.fixture(scope="session")
def trainings() -> dict[tuple[str, ...], tuple[Path, Answer]]:
    """Settings -> the folder after a training with them, and the result of the command."""
    return {}


@pytest.fixture
def train_once(
    run: Run,
    corpus: str,
    folder: Path,
    trainings: dict[tuple[str, ...], tuple[Path, Answer]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Answer]:
    """Train on the small text; a run that another test has trained with the same settings is copied."""

    def call(*arguments: str) -> Answer:
        if arguments in trainings:
            shutil.copytree(trainings[arguments][0], folder, symlinks=True, dirs_exist_ok=True)
        else:
            answer = run("train", *corpus.split(), *arguments)
            assert answer.code == 0, answer.err
            kept = tmp_path_factory.mktemp("trained") / "folder"
            trainings[arguments] = shutil.copytree(folder, kept, symlinks=True), answer
        return trainings[arguments][1]

    return call


@pytest.fixture
def trained(train_once: Callable[..., Answer]) -> Answer:
    """A run of two steps in ``runs``; its learned positions end with the context of 16."""
    return train_once(*TINY, "pos=learned")


def type_lines(monkeypatch: pytest.MonkeyPatch, lines: Sequence[str | BaseException]) -> None:
    """Make ``input`` return these lines and then raise EOFError; an exception stands for a key such as Ctrl-C."""
    waiting = iter(lines)

    def read(prompt: str) -> str:
        line = next(waiting, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", read)
