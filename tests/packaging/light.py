"""Run commands in processes without imported libraries, forked from one small interpreter.

Run as a program, it reads a JSON list of command lines from stdin and prints the exit code and the modules of each.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def answers(lines: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """The exit code of each command line, and the modules imported by its process."""
    command = [sys.executable, __file__]
    result = subprocess.run(command, input=json.dumps(lines), capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def _answer(line: Sequence[str]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os.environ |= {"COMP_LINE": "mgpt-train attention=m", "COMP_POINT": "22"}
        main = importlib.import_module(f"modular_gpt.cli.{'evaluate' if line[0] == 'eval' else line[0]}").main
        code = main(list(line[1:]))
        with os.fdopen(writing, "w") as out:
            json.dump({"code": code, "modules": list(sys.modules)}, out)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as out:
        text = out.read()
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(text or '{"code": null, "modules": []}')
    return answer


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for name in ("early", "help", "hydra_answers"):  # common imports of all commands
        importlib.import_module(f"modular_gpt.cli.{name}")
    print(json.dumps([_answer(line) for line in json.load(sys.stdin)]))
