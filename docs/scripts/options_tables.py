"""The help texts of the commands and of each group of options; tables.py writes them into pages."""

import io
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from unittest.mock import patch

from modular_gpt.cli import bench, compare, convert, evaluate, generate, inspect, train
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.schema import options
from modular_gpt.cli.composition.train_config import TRAIN

GROUPS = TRAIN.choices()
HEAD = ["option", "description"]


def rows(group: str) -> list[list[str]]:
    """Return a row for each option of a group, the default one first."""
    lines = options(TRAIN, group, [conf_dir()])
    first = GROUPS[group].default
    names = sorted(lines, key=lambda name: name != first)
    return [[f"`{name}`" + (" (default)" if name == first else ""), lines[name]] for name in names]


def printed(main: Callable[[list[str]], int], *arguments: str) -> str:
    """Return the output of a command as a Markdown block."""
    with redirect_stdout(io.StringIO()) as output, patch.dict(os.environ, COLUMNS="116"):
        assert main(list(arguments)) == 0
    return f"```text\n{output.getvalue().rstrip()}\n```"


def train_groups() -> str:
    """Return a section with the help text of each group of mgpt-train."""
    return "\n\n".join(f"### {group}\n\n{printed(train.main, '--help', group)}" for group in GROUPS)


def help_of(main: Callable[[list[str]], int]) -> Callable[[], str]:
    """Return a function that returns the help text of a command."""
    return lambda: printed(main, "--help")


COMMANDS = {
    "compare": compare,
    "bench": bench,
    "generate": generate,
    "evaluate": evaluate,
    "convert": convert,
    "inspect": inspect,
}
HELP = {name: help_of(command.main) for name, command in COMMANDS.items()}
