"""The additions shown in CONTRIBUTING.md are made in a copy of the checkout, in the places it names, and work."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

BLOCKS = {block.kind: block.code for block in blocks((ROOT / "CONTRIBUTING.md").read_text())}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout to change."""
    for name in ("modular_gpt", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add_row(path: Path, table: str, function: str, row: str) -> None:
    """Write a function above the assignment of a table, and a row at the end of the table."""
    source = path.read_text()
    (node,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign | ast.Assign)
        and table
        in [ast.unparse(target) for target in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    )
    lines = source.splitlines(keepends=True)
    assert node.end_lineno is not None
    above, inside, below = (
        lines[: node.lineno - 1],
        lines[node.lineno - 1 : node.end_lineno - 1],
        lines[node.end_lineno - 1 :],
    )
    path.write_text("".join([*above, function, "\n\n", *inside, row, *below]))


def python(checkout: Path, *arguments: str) -> str:
    """What this Python prints with the copy in place of the package; fails with its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def test_a_topology_is_a_function_and_a_row(checkout: Path) -> None:
    table = checkout / "modular_gpt" / "model" / "topologies.py"
    add_row(table, "TOPOLOGIES", BLOCKS["python topology"], BLOCKS["python topology-row"])
    formulas = checkout / "tests" / "model" / "test_blocks.py"
    source, other = formulas.read_text(), "        case _:\n"
    assert source.count(other) == 1
    formulas.write_text(source.replace(other, BLOCKS["python topology-formula"] + other))
    printed = python(checkout, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", str(formulas), "-k", "pre_post")
    assert " passed" in printed
