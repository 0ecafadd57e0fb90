"""What the command line offers, group by group, as --help tells it; tables.py writes it into pages."""

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
    """The options of a group, the default one first."""
    lines = options(TRAIN, group, [conf_dir()])
    first = GROUPS[group].default
    names = sorted(lines, key=lambda name: name != first)
    return [[f"`{name}`" + (" (default)" if name == first else ""), lines[name]] for name in names]


def printed(main: Callable[[list[str]], int], *arguments: str) -> str:
    """What a command prints, as a block of text."""
    with redirect_stdout(io.StringIO()) as heard, patch.dict(os.environ, COLUMNS="116"):
        assert main(list(arguments)) == 0
    return f"```text\n{heard.getvalue().rstrip()}\n```"


def train_groups() -> str:
    """Every group with its options and their settings."""
    return "\n\n".join(f"### {group}\n\n{printed(train.main, '--help', group)}" for group in GROUPS)


def help_of(main: Callable[[list[str]], int]) -> Callable[[], str]:
    """All that a command can be told."""
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
