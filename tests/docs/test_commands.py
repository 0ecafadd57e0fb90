"""Every mgpt-train and mgpt-generate command on a page is valid."""

import re
import shlex
from collections.abc import Iterator

import pytest

from modular_gpt.cli import bench, compare, convert, evaluate, generate, inspect, train
from tests.docs.pages import ROOT, blocks, pages

PROGRAMS = {
    "mgpt-train": train.main,
    "mgpt-generate": generate.main,
    "mgpt-eval": evaluate.main,
    "mgpt-convert": convert.main,
    "mgpt-bench": bench.main,
    "mgpt-compare": compare.main,
    "mgpt-inspect": inspect.main,
}
COMMAND = re.compile(r"^\s*(?P<words>mgpt-\w+\b.*)$", re.MULTILINE)
OWN = {"add_a_component.md"}  # names user-defined components; test_tutorial.py runs its commands


def printed() -> list[tuple[str, list[str], str]]:
    """Pages, arguments and comment of each command in a shell block."""
    found: dict[tuple[str, str], list[str]] = {}
    for page in pages():
        shells = [block.code for block in blocks(page.read_text()) if block.kind == "bash" and page.name not in OWN]
        for match in COMMAND.finditer("\n".join(shells)):
            command, _, comment = match["words"].partition(" #")
            on = found.setdefault((command.strip(), comment.strip()), [])
            on.append(page.relative_to(ROOT).as_posix())
    return [(" ".join(on), shlex.split(command), comment) for (command, comment), on in found.items()]


def without_running(words: list[str]) -> Iterator[list[str]]:
    """The command without running it; a sweep gives one command per value."""
    if "--help" in words:
        yield words
        return
    settings = [word for word in words if not word.startswith(("resume=", "init_from=")) and word != "--multirun"]
    if "--multirun" not in words:
        yield [*settings, "--cfg", "job"]
        return
    for word in settings:
        key, _, values = word.partition("=")
        yield from ([f"{key}={value}", "--cfg", "job"] for value in values.split(","))


@pytest.mark.parametrize(("page", "words", "comment"), printed(), ids=lambda value: str(value)[:60])
def test_a_printed_command_is_valid(
    page: str, words: list[str], comment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = words
    codes = [PROGRAMS[program](command) for command in without_running(arguments)]
    refusal = capsys.readouterr().err.strip()
    if not comment.startswith("error: "):
        assert codes == [0] * len(codes), refusal
        return
    assert codes == [2]
    assert refusal.startswith(comment.removesuffix("...").strip()), f"{page} says otherwise"


def test_there_are_commands() -> None:
    assert len(printed()) > 20
