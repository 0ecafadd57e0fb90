"""Commands without groups: from words to the one dataclass that holds all their settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modular_gpt.cli.composition.compose import as_yaml, composed, plain
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import read_overrides
from modular_gpt.cli.composition.schema import Command
from modular_gpt.core.validation import from_mapping


def read_plain(command: Command, words: Sequence[str], where: list[Path]) -> tuple[Any, str]:
    """An instance of ``command.plain`` as some words describe it, and all of its settings as YAML.

    Raises:
        ConfigError: a word is no setting, or a value cannot be.
    """
    _, spelled = read_overrides(command, words, where)
    with explained(command, where):
        config = composed(command, spelled, where)
        values = plain(config)
    return from_mapping(command.plain, values, command.name), as_yaml(config)
