"""``~`` is the home directory in every setting that is a path, on the command line, in yaml files and in Python."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from modular_gpt import compose
from modular_gpt.cli.convert_task import ConvertSettings
from modular_gpt.cli.evaluate_task import EvalSettings
from modular_gpt.cli.generate_task import Task
from modular_gpt.core.registry import decode, entries, slots
from modular_gpt.training import RunConfig
from tests.cli.conftest import TINY, Run

PATHS = ("path", "runs", "resume", "init_from", "checkpoint", "text", "prompts", "draft", "include")


def path_settings() -> Iterator[tuple[Callable[..., object], str]]:
    """A function that reads settings by keyword, and the name of a path among them."""
    of_corpus, of_tasks = partial(EvalSettings, corpus="text"), partial(EvalSettings, tasks="piqa")
    yield from ((of_corpus, "path"), (of_tasks, "text"), (of_tasks, "include"), (of_tasks, "checkpoint"))
    for cls in (RunConfig, Task, ConvertSettings):
        yield from ((cls, field.name) for field in fields(cls) if field.name in PATHS)
    for slot in slots():
        for name, entry in entries(slot).items():
            found = [field.name for field in fields(entry.component.Config) if field.name in PATHS]
            yield from (
                (lambda slot=slot, name=name, **given: decode(slot, {"name": name, **given}), one) for one in found
            )


@pytest.mark.parametrize(("read", "name"), list(path_settings()))
def test_a_home_directory_is_expanded(read: Callable[..., object], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for given, expected in (("~/there", "/home/somebody/there"), ("a~b", "a~b")):
        assert getattr(read(**{name: given}), name) in (expected, [expected])


def test_a_list_of_paths_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert compose("data=text", "data.path=['~/a',b]").data.path == ["/home/somebody/a", "b"]


def test_a_run_in_the_home_directory(run: Run, corpus: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    (folder / "text.txt").rename(folder / "home" / "text.txt")
    answer = run("train", "data=text", "data.path=~/text.txt", "tokenizer=char", *TINY, "runs=~/mine")
    assert answer.code == 0, answer.err
    assert (folder / "home" / "mine" / "latest").exists() and not (folder / "~").exists()
    answer = run("train", "resume=~/mine/latest", "trainer.max_steps=3")
    assert answer.code == 0, answer.err
    answer = run("generate", "checkpoint=~/mine/latest", "prompt=the", "max_new_tokens=2")
    assert answer.code == 0, answer.err
