"""Text settings are taken literally, even if they contain special characters of Hydra's grammar."""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modular_gpt import compose
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.generate_task import read_task
from tests.cli.conftest import TINY, Run
from tests.fresh import python

NASTY = "\\'\"${}[](),=#: \t\n~+*?%@|!é中🙂"
texts = st.text(st.one_of(st.sampled_from(NASTY), st.characters(exclude_categories=["Cs"], exclude_characters="\0")))


@settings(max_examples=40)
@given(texts)
@example("a,b'c=d#e ${f} {g: h} $HOME \\${i} \\\\${j}")
@example("true")
@example("1e3")
@example("[1,2")
@example(" def ")
@example("größe=中,🙂")
@example("'quoted'")
@example('"quoted"')
@example("\\")
def test_a_prompt_is_taken_literally(text: str) -> None:
    if text not in ("null", "???"):
        assert read_task([f"prompt={text}"], [conf_dir()])[0].prompt == text


@settings(max_examples=10)
@given(texts)
def test_a_path_is_taken_literally(text: str) -> None:
    if text not in ("null", "???") and not (text.startswith("[") and text.endswith("]")):
        assert compose("data=text", f"data.path={text}").data.path == text


def test_the_marker_of_missing_values_is_refused(run: Run) -> None:
    answer = run("generate", "prompt=???")
    assert answer.code == 2 and "'???' cannot be given" in answer.err


def test_null_and_lists_of_texts() -> None:
    assert read_task(["prompt=null"], [conf_dir()])[0].prompt is None
    assert compose("data=text", "data.path=[a.txt,'b, c.txt',d/**/*.txt]").data.path == [
        "a.txt",
        "b, c.txt",
        "d/**/*.txt",
    ]
    assert read_task(["stop=a, b"], [conf_dir()])[1].stop == ["a, b"]
    assert read_task(["stop=[a,b]"], [conf_dir()])[1].stop == ["a", "b"]


@pytest.mark.parametrize("name", ["größe", "a=b", "a,b", "it's", "a b", "100%", "{x}", "$x", "#1"])
def test_special_characters_in_the_name_of_a_run(run: Run, corpus: str, folder: Path, name: str) -> None:
    answer = run("train", *corpus.split(), *TINY, "trainer.max_steps=1", f"name={name}")
    assert answer.code == 0, answer.err
    assert [path.name.endswith(f"-{name}") for path in (folder / "runs").iterdir() if not path.is_symlink()] == [True]


def test_globs_are_expanded_by_the_program(root: Path, folder: Path) -> None:
    for name, text in (("corpus/a.txt", "words that repeat, "), ("corpus/deep/er/b, c.txt", "other words again, ")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text * 50)
    arguments = ["data=text", "data.path=corpus/**/*.txt", "tokenizer=char", *TINY, "trainer.max_steps=1"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    result = python("-m", "modular_gpt.cli.train", *arguments, env=environment)
    assert result.returncode == 0, result.stderr
    assert f"{2 * 19 * 50 * 9 // 10:,} tokens to train on" in result.stdout
