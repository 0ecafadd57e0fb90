"""The additions shown in CONTRIBUTING.md work in a copy of the checkout, in the files that it names."""

import ast
import os
import re
import shutil
import textwrap
from pathlib import Path

import pytest

from tests import fresh
from tests.docs.pages import ROOT, blocks

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = {block.kind: block.code for block in blocks(PAGE)}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout for changes."""
    for name in ("modular_gpt", "conf", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add_row(path: Path, table: str, function: str, row: str) -> None:
    """Write a function above the assignment of a table, and a row at the end of the table."""
    source = path.read_text()
    assigned = {
        ast.unparse(target): node
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign | ast.Assign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    first, last = assigned[table].lineno - 1, (assigned[table].end_lineno or 0) - 1
    lines = source.splitlines(keepends=True)
    row = textwrap.indent(row.rstrip(), "    ") + ",\n"
    path.write_text("".join([*lines[:first], function, "\n\n", *lines[first:last], row, *lines[last:]]))


def python(checkout: Path, *arguments: str) -> str:
    """Run Python code with the copy of the package; returns its output, and fails if the code fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    result = fresh.python(*arguments, cwd=checkout, env=environment)
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


def test_a_sampling_filter_is_a_function_and_a_row(checkout: Path) -> None:
    """Sampling, validation, the refusal by beam search, and the help text follow."""
    table = checkout / "modular_gpt" / "generation" / "sampling.py"
    add_row(table, "FILTERS", BLOCKS["python filter"], BLOCKS["python filter-row"])
    narrow, negative, beam = python(checkout, "-c", BLOCKS["python filter-use"]).splitlines()
    assert narrow == "True"
    assert negative.startswith("top_n_sigma must be above 0")
    assert "beam" in beam and "top_n_sigma" in beam
    printed = python(checkout, "-m", "modular_gpt.cli.generate", "--help")
    assert "top_n_sigma=null" in printed and "standard deviations" in printed


def test_every_named_file_exists() -> None:
    """The files and folders of the table; for a file to be added, its folder."""
    table = PAGE.partition("## Where each thing goes")[2].partition("\n### ")[0]
    rows = "".join(line for line in table.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`([\w.<>/]+/[\w.<>/]*|pyproject\.toml)`", rows))
    written = {path.replace("<slot>", "attention") for path in named}
    there = {path: ROOT / (path.rpartition("/")[0] if "<" in path.rpartition("/")[2] else path) for path in written}
    assert len(there) > 20
    assert [path for path, place in there.items() if not place.exists()] == []
    tables = re.findall(r"`([A-Z]+)` (?:of|in) `([\w/]+\.py)`", rows)
    assert len(tables) > 5
    for name, path in tables:
        assert re.search(rf"^{name}\b.* = ", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


NEW = "Only a file of its own, in the folder of its kind."
KINDS = {  # slot -> folder, and the name of the base class in its base.py
    "data": ("data/corpora", "Corpus"),
    "tokenizer": ("data/tokenizers", "Tokenizer"),
    "logger": ("training/loggers", "Logger"),
    "optim": ("optim", "Optimizer"),
}


def test_a_file_in_its_folder_is_registered(checkout: Path) -> None:
    """It is registered without an entry in any list."""
    for folder, base in KINDS.values():
        module = f"modular_gpt.{folder.replace('/', '.')}.base"
        code = f'from {module} import {base}\n\n\nclass New({base}, name="brand_new"):\n    """{NEW}"""\n'
        (checkout / "modular_gpt" / folder / "brand_new.py").write_text(code)
    script = "import modular_gpt.training; from modular_gpt.core.registry import entries; "
    script += f"print(*(entries(slot)['brand_new'].summary for slot in {list(KINDS)}), sep='\\n')"
    assert python(checkout, "-c", script).splitlines() == [NEW] * len(KINDS)
