"""Commands without groups: arguments are read into a single dataclass of all settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modular_gpt.cli.composition.compose import as_yaml, composed, plain
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import read_overrides
from modular_gpt.cli.composition.schema import Command
from modular_gpt.core.validation import from_mapping


def read_plain(command: Command, arguments: Sequence[str], where: list[Path]) -> tuple[Any, str]:
    """Build an instance of ``command.plain`` from arguments. Returns it, and all of its settings as YAML.

    Raises:
        ConfigError: an argument names no setting, or its value is not valid.
    """
    _, hydra_overrides = read_overrides(command, arguments, where)
    with explained(command, where, arguments):
        config = composed(command, hydra_overrides, where)
        values = plain(config)
    return from_mapping(command.plain, values, ""), as_yaml(config)
