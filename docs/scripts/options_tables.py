"""What the command line offers, group by group, as --help tells it; tables.py writes it into pages."""

import os
from unittest.mock import patch

from modular_gpt.cli import _help, _writing
from modular_gpt.cli._conf_dir import conf_dir
from modular_gpt.cli._run import TRAIN
from modular_gpt.cli._settings import options
from modular_gpt.cli.generate import ABOUT, EXAMPLES

FOLDERS = [conf_dir()]  # the package's own, whatever else is installed
GROUPS = TRAIN.choices()
HEAD = ["option", "what it is"]
WIDTH = {"COLUMNS": "116"}  # of the text that --help prints


def rows(group: str) -> list[list[str]]:
    """The options of a group, the default one first."""
    lines = options(TRAIN, group, FOLDERS)
    first = GROUPS[group].default
    names = sorted(lines, key=lambda name: name != first)
    return [[f"`{name}`" + (" (default)" if name == first else ""), lines[name]] for name in names]


def reference() -> str:
    """Every group with its options and their settings, as `mgpt-train --help GROUP` prints them."""
    with patch.dict(os.environ, WIDTH):
        return "\n\n".join(f"### {group}\n\n```text\n{_help.details(TRAIN, group, FOLDERS)}\n```" for group in GROUPS)


def generate() -> str:
    """What `mgpt-generate --help` prints."""
    with patch.dict(os.environ, WIDTH):
        return f"```text\n{_help.overview(_writing.GENERATE, ABOUT, EXAMPLES, FOLDERS)}\n```"
