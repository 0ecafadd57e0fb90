"""The common code of all commands: flags, help, exit codes, and one sentence for a user's mistake.

This module imports no large library, so that it handles Ctrl-C during the start of a command.
"""

import argparse
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from modular_gpt._version import __version__
from modular_gpt.core.errors import ConfigError, ReportedElsewhere, UserError
from modular_gpt.core.registry import PLUGINS
from modular_gpt.runtime.cpu_threads import avoid_spinning
from modular_gpt.runtime.signals import deferred_signals, pending_errors

if TYPE_CHECKING:
    from modular_gpt.cli.composition.schema import Command

MISTAKE = 2  # exit codes
REPORT_DELAY = 30.0  # seconds for another process, which may start later, to report the mistake
ENDED_BY_SIGNAL = 128  # plus the signal's number, so that Ctrl-C gives 130
INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


@dataclass
class CommandLine:
    """The flags of a command line, and its settings as typed; with ``help``, the settings are topics."""

    settings: list[str] = field(default_factory=list)
    help: bool = False
    version: bool = False
    cfg: str | None = None
    multirun: bool = False
    config_dir: str | None = None
    hydra_help: bool = False
    info: str | None = None
    shell_completion: bool = False
    quick: bool = False

    @property
    def folders(self) -> list[Path]:
        """The folders with yaml files: the package's own, and that of ``--config-dir``."""
        from modular_gpt.cli.composition.schema import folders

        return folders(self.config_dir)

    def for_hydra(self) -> list[str]:
        """The flags that Hydra itself answers."""
        flags = [("--hydra-help", self.hydra_help), ("--shell-completion", self.shell_completion)]
        given = [flag for flag, is_given in flags if is_given]
        info = [] if self.info is None else ["--info", self.info]
        return [*given, *info, *([] if self.cfg in (None, "job") else ["--cfg", str(self.cfg)])]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """The flags and the settings of a command line.

    Raises:
        ConfigError: a flag does not exist or lacks its value.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--quick", action="store_true")
    line = CommandLine()
    _, rest = parser.parse_known_args(list(arguments), namespace=line)
    for argument in rest:
        if argument.startswith("-"):
            raise ConfigError(_unknown_flag(argument))
        line.settings.append(argument)
    return line


def _unknown_flag(flag: str) -> str:
    bare = flag.lstrip("-")
    if "=" in bare:
        return f"no flag {flag!r}; settings are written without dashes: {bare}"
    setting = f"; a setting is written without dashes, {bare}=..." if flag.startswith("--") else ""
    return f"no flag {flag!r}; see --help{setting}"


def answer(run: Callable[[CommandLine], int], arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code; a user's mistake is one sentence on stderr."""
    avoid_spinning()
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # rms_norm under autocast
    arguments = sys.argv[1:] if arguments is None else arguments
    if os.environ.get(PLUGINS):
        sys.path.append(os.getcwd())  # for modules of the user; last, so that they hide no others
    try:
        line = read_command_line(arguments)
        if line.version:
            torch, python = metadata.version("torch"), platform.python_version()
            print(f"modular-gpt {version()} with PyTorch {torch}, Python {python}")
            return 0
        code = run(line)
        sys.stdout.flush()
        return code
    except ReportedElsewhere:
        time.sleep(REPORT_DELAY)  # a launcher ends all processes when the first one ends
        return MISTAKE
    except UserError as error:
        with deferred_signals():
            print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except SystemExit as end:
        for hidden in pending_errors(end):
            if isinstance(hidden, UserError) and not isinstance(hidden, ReportedElsewhere):
                print(f"error: {hidden}", file=sys.stderr)
                break
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ENDED_BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:  # the reader, such as head, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def imports() -> Iterator[None]:
    """Context manager around the imports of a command: Ctrl-C ends the process at once and without a traceback.

    A KeyboardInterrupt inside a library's import can be swallowed there, or leave the library half imported.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(ENDED_BY_SIGNAL + number)


def answered_by_flags(line: CommandLine, command: "Command", about: str, examples: Sequence[tuple[str, str]]) -> bool:
    """Print the help of a command without groups for the flag --help; returns whether it was given.

    Raises:
        ConfigError: a flag is only for commands with groups.
    """
    if line.help:
        from modular_gpt.cli.help import help_text

        print(help_text(command, about, examples, line.settings, line.folders))
    elif line.for_hydra() or line.multirun:
        raise ConfigError(f"mgpt-{command.name} has the flags --help, --version, --cfg job and --config-dir only")
    if line.quick and command.name != "compare":
        raise ConfigError(f"--quick is a flag of mgpt-compare, not of mgpt-{command.name}: leave it out")
    return line.help


@contextmanager
def hydra_command_line(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """Context manager for Hydra's own main: its arguments, and its errors as exceptions."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [program, *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def version() -> str:
    """The package's version."""
    return __version__
