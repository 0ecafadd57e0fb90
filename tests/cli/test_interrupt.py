"""Ctrl-C while a command still imports its libraries: a one-line message, exit code 130, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modular_gpt.cli.app import imports

# A command whose import of numpy, of which torch is made, waits until it is interrupted.
WAITING = """
import builtins, os, signal, sys
real = builtins.__import__
def waiting(name, *arguments, **keywords):
    if name.partition(".")[0] in ("torch", "hydra", "omegaconf"):
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *arguments, **keywords)
builtins.__import__ = waiting
from modular_gpt.cli.{command} import main
sys.exit(main(["--help"]))
"""


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "convert"])
def test_ctrl_c_during_imports_prints_no_traceback(root: Path, command: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", WAITING.format(command=command)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_the_handler_is_removed_after_the_imports() -> None:
    before = signal.getsignal(signal.SIGINT)
    with imports():
        pass
    assert signal.getsignal(signal.SIGINT) is before
