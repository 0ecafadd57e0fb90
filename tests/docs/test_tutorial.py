"""docs/add_a_component.md step by step, as a reader would follow it: files, commands, laws; then inside the package."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import fresh
from tests.docs.pages import ROOT, blocks, files, lay_out

PAGE = ROOT / "docs" / "add_a_component.md"
TEXT = PAGE.read_text()
FILES = files(TEXT)
PLUGIN = "shared_qk"
PROGRAMS = {
    "python": "",
    "mgpt-train": "-m modular_gpt.cli.train",
    "mgpt-generate": "-m modular_gpt.cli.generate",
    "mgpt-compare": "-m modular_gpt.cli.compare",
}
SUMMARY = "Shared query-key attention: one matrix computes both queries and keys (Reformer)."


def commands(kind: str) -> str:
    """The code of the only block with an info string."""
    (found,) = [block.code for block in blocks(TEXT) if block.kind == kind]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the reader with the files of the page."""
    folder = tmp_path_factory.mktemp("reader")
    lay_out(TEXT, folder)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Shell environment with the package installed: its commands, this Python, one thread."""
    programs = tmp_path_factory.mktemp("bin")
    for name, module in PROGRAMS.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.join(fresh.command())} {module} "$@"\n')
        program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    path = os.pathsep.join([str(programs), kept["PATH"]])
    changes = {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MODULAR_GPT_CACHE": str(programs / "cache"),
    }
    return {**kept, **changes}


def shell(script: str, folder: Path, environment: dict[str, str]) -> str:
    """The output of a script, which fails at its first failing command."""
    result = subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_the_python_of_the_page(folder: Path, environment: dict[str, str]) -> None:
    run = f"from pathlib import Path; from tests.docs.pages import check; check(Path({str(PAGE)!r}))"
    shell(f"python -c {shlex.quote(run)}", folder, environment)


def test_its_commands(folder: Path, environment: dict[str, str]) -> None:
    printed = shell(commands("bash"), folder, environment)
    assert SUMMARY in " ".join(printed.split())  # help is wrapped
    assert "in a window of 32 tokens" in " ".join(printed.split())  # help is wrapped
    assert "window: 16" in printed
    assert (folder / "runs" / "latest").exists()


def test_the_diagnostics_run_on_it(folder: Path, environment: dict[str, str]) -> None:
    printed = shell(commands("bash quick"), folder, {**environment, "MODULAR_GPT_PLUGINS": PLUGIN})
    assert "WRONG" not in printed
    assert "D1 lag 8" in printed and "receptive field" in printed


def test_help_lists_it(folder: Path, environment: dict[str, str]) -> None:
    plugin = {**environment, "MODULAR_GPT_PLUGINS": PLUGIN}
    assert PLUGIN in shell("mgpt-train --help", folder, plugin)
    assert PLUGIN not in shell("mgpt-train --help", folder, environment)


def test_a_missing_module(folder: Path, environment: dict[str, str]) -> None:
    wrong = {**environment, "MODULAR_GPT_PLUGINS": "shared_kq"}
    result = subprocess.run(["mgpt-train", "--help"], cwd=folder, env=wrong, capture_output=True, text=True)
    assert result.returncode == 2
    assert "'shared_kq', which cannot be imported" in result.stderr
    assert "Traceback" not in result.stderr


def laws_passed(script: str, folder: Path, environment: dict[str, str]) -> str:
    printed = shell(f"{script.strip()} -n 0 -p no:cacheprovider", folder, environment)
    assert " passed" in printed
    return printed


def test_the_laws_run_on_it(folder: Path, environment: dict[str, str]) -> None:
    plugin = {**environment, "MODULAR_GPT_PLUGINS": PLUGIN, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    laws_passed(commands("bash laws"), ROOT, plugin)


def test_in_the_package(tmp_path: Path, environment: dict[str, str]) -> None:
    """The same two files in a copy of the checkout: listed and tested by the laws without other edits."""
    for name in ("modular_gpt", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, content in FILES.items():
        in_package = name if name.startswith("conf/") else f"modular_gpt/nn/attention/{name}"
        (tmp_path / in_package).write_text(content)
    there = {**environment, "PYTHONPATH": str(tmp_path)}
    printed = shell("mgpt-train --help attention", tmp_path, there)
    assert SUMMARY in " ".join(printed.split())  # help is wrapped
    assert "in a window of 32 tokens" in " ".join(printed.split())  # help is wrapped
    some = f"{commands('bash laws').strip()}' and (causal or token_by_token or bytes_as)'"
    laws_passed(some, tmp_path, there)
