"""Every mgpt-train and mgpt-generate that a page prints is one that the commands understand."""

import re
import shlex
from pathlib import Path

import pytest

from modular_gpt.cli._app import read_line
from modular_gpt.cli._conf_dir import conf_dir
from modular_gpt.cli._run import TRAIN, composed_run
from modular_gpt.cli._settings import folders
from modular_gpt.cli._writing import read_task
from modular_gpt.core.errors import ConfigError
from tests.docs.pages import ROOT, blocks, pages

PROGRAM = re.compile(r"^\s*(?:\$ )?(?P<words>mgpt-(?:train|generate)\b.*)$", re.MULTILINE)
OWN = {"add_a_component.md"}  # names options of the reader's own; test_tutorial.py runs its commands


def printed() -> list[tuple[str, list[str], str]]:
    """Page, words and comment of each command in a shell block."""
    found = []
    for page in pages():
        shells = [block.code for block in blocks(page.read_text()) if block.kind == "bash" and page.name not in OWN]
        for match in PROGRAM.finditer("\n".join(shells)):
            command, _, comment = match["words"].partition(" #")
            found.append((page.relative_to(ROOT).as_posix(), shlex.split(command), comment.strip()))
    return found


def understood(words: list[str], folder: Path) -> None:
    """Read a command as the program does, up to where it would start to work."""
    program, *rest = words
    line = read_line(rest)
    where = folders(line.config_dir)
    if program == "mgpt-generate":
        read_task(line.words, where)
    elif line.help:
        assert set(line.words) <= set(TRAIN.choices())
    elif line.multirun:
        names = [word.split(",") if "," in word else [word] for word in line.words]
        for word in names:  # each value on its own
            key = word[0].partition("=")[0]
            for value in [word[0], *(f"{key}={other}" for other in word[1:])]:
                composed_run([value], where)
    elif not line.flags:
        composed_run([word for word in line.words if not word.startswith("resume=")], where)


@pytest.mark.parametrize(("page", "words", "comment"), printed(), ids=lambda value: str(value)[:60])
def test_a_printed_command_is_understood(page: str, words: list[str], comment: str, tmp_path: Path) -> None:
    if not comment.startswith("error: "):
        return understood(words, tmp_path)
    with pytest.raises(ConfigError) as caught:
        understood(words, tmp_path)
    said = comment.removeprefix("error: ").removesuffix("...").strip()
    assert str(caught.value).startswith(said), f"{page} says otherwise"
    return None


def test_there_are_commands() -> None:
    assert len(printed()) > 20
    assert conf_dir() == ROOT / "conf"
