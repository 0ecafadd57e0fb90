"""Answers that need no PyTorch: help and mistakes in settings, before the libraries of a command are imported."""

import os
from collections.abc import Sequence
from pathlib import Path

from modular_gpt.cli.app import CommandLine, answered_by_flags
from modular_gpt.cli.composition.compose import composed, plain
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import read_overrides
from modular_gpt.cli.composition.schema import Command
from modular_gpt.cli.composition.stored import stored
from modular_gpt.core.checkpoint_paths import check_exists
from modular_gpt.core.plain_types import PlainDict

FROM_ELSEWHERE = ("resume", "init_from")  # settings after which the defaults are those of another run


def answered_early(
    line: CommandLine, name: str, about: str, examples: Sequence[tuple[str, str]], check: bool = True
) -> bool:
    """Print the help of a command without groups where it was asked for, if that can be done without PyTorch.

    check: refuse settings that the command does not have

    Raises:
        ConfigError: a flag is only for commands with groups, or a setting does not exist or has a wrong value.
        CheckpointError: there is no checkpoint at the path that ``checkpoint`` names.
    """
    command = stored(name)
    if command is None:
        return False
    if answered_by_flags(line, command, about, examples):
        return True
    if check:
        values = check_settings(command, line.settings, line.folders)
        if not line.cfg and isinstance(checkpoint := values.get("checkpoint"), str):
            check_exists(checkpoint)
    return False


def check_settings(command: Command, arguments: Sequence[str], where: list[Path], sweep: bool = False) -> PlainDict:
    """Refuse the settings of a command line that cannot be composed, before the libraries are imported.

    Returns the settings; {} if they are not known yet, as those of a sweep and of a resumed run. Several processes of
    one training are not checked here: later, one of them reports for all.

    Raises:
        ConfigError: a setting does not exist, or a value has the wrong type.
        CheckpointError: there is nothing to resume or to start from at the path that was given.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return {}
    typed, hydra_overrides = read_overrides(command, arguments, where, sweep=sweep)
    sources = [override.value for override in typed if override.key in FROM_ELSEWHERE]
    if sweep or sources:
        for source in () if sweep else sources:
            check_exists(source)
        return {}
    with explained(command, where, arguments):
        return plain(composed(command, hydra_overrides, where))
