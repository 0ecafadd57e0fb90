"""What the command line offers, group by group; tables.py writes it into pages.

Options and their lines are those of --help: yaml files and registered names, the default one first.
"""

from modular_gpt.cli._conf_dir import conf_dir
from modular_gpt.cli._run import TRAIN
from modular_gpt.cli._settings import options

FOLDERS = [conf_dir()]  # the package's own, whatever else is installed
GROUPS = TRAIN.choices()
HEAD = ["option", "what it is"]


def rows(group: str) -> list[list[str]]:
    """The options of a group."""
    lines = options(TRAIN, group, FOLDERS)
    first = GROUPS[group].default
    names = sorted(lines, key=lambda name: name != first)
    return [[f"`{name}`" + (" (default)" if name == first else ""), lines[name]] for name in names]
