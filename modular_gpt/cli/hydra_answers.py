"""Runs of Hydra's own main: for its help, its config, tab completion and sweepers."""

import io
import re
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import hydra
from omegaconf import DictConfig

from modular_gpt.cli.app import CommandLine, hydra_command_line
from modular_gpt.cli.composition.compose import HYDRA, prepare
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import read_overrides
from modular_gpt.cli.composition.schema import SCHEMA, Command

SCHEMAS = re.compile(rf"\S*{SCHEMA}\b\S* ?")  # names of schemas, which are no options


def hydra_itself(command: Command, line: CommandLine, where: list[Path]) -> int:
    """Run Hydra for one of its flags: its help, its config, the origin of settings, or tab completion.

    Returns the exit code.
    """
    # tab completion has other arguments, and incomplete ones
    arguments = line.settings if line.shell_completion else read_overrides(command, line.settings, where, hydra=True)[1]
    printed = io.StringIO()
    completes = line.shell_completion and any(argument.startswith("query=") for argument in arguments)
    try:
        with redirect_stdout(printed) if completes else nullcontext():
            hydra_main(command, [*line.for_hydra(), *arguments], where, lambda config: None)
    except SystemExit as end:  # Hydra's way to end after its help
        return int(end.code or 0)
    finally:
        print(SCHEMAS.sub("", printed.getvalue()), end="")
    return 0


def hydra_main(command: Command, arguments: list[str], where: list[Path], job: Callable[[DictConfig], None]) -> None:
    """Run Hydra's main with some arguments; ``job`` is called for each run that it starts."""
    prepare(command, where)
    with explained(command, where), hydra_command_line(f"mgpt-{command.name}", arguments):
        hydra.main(**HYDRA, config_path=str(where[0]), config_name=command.name)(job)()
