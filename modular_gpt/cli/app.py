"""What the commands have in common: flags, help, and one sentence with exit code 2 for a user's mistake."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from modular_gpt.core.errors import ConfigError, ReportedElsewhere, UserError
from modular_gpt.core.registry import PLUGINS

MISTAKE = 2  # exit codes
AFTER_YOU = 5.0  # seconds in which another process says what happened
ENDED_BY_SIGNAL = 128  # and the signal's number, so that Ctrl-C gives 130
INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


@dataclass
class Line:
    """A command line, read: settings as ``words``, and flags."""

    words: list[str] = field(default_factory=list)
    help: bool = False
    version: bool = False
    cfg: str | None = None
    multirun: bool = False
    config_dir: str | None = None
    hydra_help: bool = False
    info: str | None = None
    shell_completion: bool = False

    def for_hydra(self) -> list[str]:
        """The flags that Hydra itself answers."""
        flags = [("--hydra-help", self.hydra_help), ("--shell-completion", self.shell_completion)]
        given = [flag for flag, is_given in flags if is_given]
        info = [] if self.info is None else ["--info", self.info]
        return [*given, *info, *([] if self.cfg in (None, "job") else ["--cfg", str(self.cfg)])]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def read_line(arguments: Sequence[str]) -> Line:
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
    line = Line()
    _, rest = parser.parse_known_args(list(arguments), namespace=line)
    for word in rest:
        if not word.startswith("-"):
            line.words.append(word)
        else:
            bare = word.lstrip("-")
            hint = f"settings are written without dashes: {bare}" if "=" in bare else "see --help"
            if word.startswith("--") and "=" not in bare:
                hint += f"; a setting is written without dashes, {bare}=..."
            raise ConfigError(f"no flag {word!r}; {hint}")
    return line


def answer(run: Callable[[Line], int], arguments: Sequence[str] | None) -> int:
    """Run a command and return its exit code; mistakes of the user are told in one sentence on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if os.environ.get(PLUGINS):
        sys.path.append(os.getcwd())  # the user's own modules; last, so that they hide nothing
    try:
        line = read_line(arguments)
        if line.version:
            print(f"modular-gpt {version()}")
            return 0
        code = run(line)
        sys.stdout.flush()
        return code
    except ReportedElsewhere:
        time.sleep(AFTER_YOU)  # a launcher ends all processes when the first one ends
        return MISTAKE
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ENDED_BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def hydras_command_line(program: str, words: Sequence[str]) -> Iterator[None]:
    """While Hydra's own main runs: its words, and its errors as exceptions instead of its way of printing them."""
    arguments, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [program, *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = arguments
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def version() -> str:
    """The package's version, from its ``__init__``, which has run before any module of it."""
    return str(sys.modules[__name__.partition(".")[0]].__dict__["__version__"])


def topic(line: Line, choices: Sequence[str]) -> str | None:
    """The group that --help was asked about, if any."""
    return next((word for word in line.words if word in choices), None)


def where_to_look(line: Line) -> list[Path]:
    """The folders with yaml files."""
    from modular_gpt.cli.composition.schema import folders

    return folders(line.config_dir)
