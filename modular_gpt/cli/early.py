"""Help, and messages about mistakes in settings, before the libraries of a command, such as PyTorch, are imported."""

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

FROM_ELSEWHERE = ("resume", "init_from")  # settings with which the defaults are those of another run


def answered_early(
    line: CommandLine, name: str, about: str, examples: Sequence[tuple[str, str]], check: bool = True
) -> bool:
    """Print the help of a command without groups for --help, if the stored table can be used; returns whether it did.

    check: whether to refuse settings that the command does not have

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
    """Check the settings of a command line before the libraries are imported.

    Returns the settings; {} if they are not known yet, as in a sweep and a resumed run. Nothing is checked in several
    processes of one training, of which one reports for all later.

    Raises:
        ConfigError: a setting does not exist, or a value has the wrong type.
        CheckpointError: there is no run at the path of ``resume``, or no model at that of ``init_from``.
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
