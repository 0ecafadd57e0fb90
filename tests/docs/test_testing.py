"""The page on injected faults, and on faults found in use, names tests that exist."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

from tests.docs.pages import ROOT

ROW = re.compile(r"^\| (?P<row>R\d+) \|(.*\|){2} (?P<where>.*) \| .* \|$", re.MULTILINE)
NUMBERS = [*map(str, range(32)), "24b", "24c"]


def check_names(row: str, names: list[str]) -> None:
    """Each file exists, and every name matches a test of the files before it."""
    files, folder = [], ROOT
    for name in names:
        if name.endswith(".py"):
            path = next(
                p for p in (ROOT / "tests" / name, folder / name, ROOT / name) if p.is_file() or p == ROOT / name
            )
            folder = path.parent
            assert path.is_file(), f"{row}: {name}"
            files.append(path)
    defined = {name for path in files for name in defined_in(path)}
    for name in names:
        assert name.endswith(".py") or any(fnmatch(test, name) for test in defined), f"{row}: {name}"


def defined_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_every_row_names_files_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    rows = {match["row"]: re.findall(r"`([^`]+)`", match["where"]) for match in ROW.finditer(page)}
    assert list(rows) == [f"R{number}" for number in range(1, 22)]
    for row, names in rows.items():
        check_names(row, names)


def test_every_fault_found_in_use_has_tests_that_exist() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    table = page[page.index("## Faults found in use") :]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if re.match(r"\| \d", line)]
    assert {number for row in rows for number in row[0].split(", ")} == set(NUMBERS)
    for number, *cells, where in rows:
        assert len(cells) == 2 and all(cells), f"{number}: {cells}"
        names = re.findall(r"`([^`]+)`", where)
        assert any(name.endswith(".py") for name in names), number
        check_names(number, names)


def test_every_feature_of_the_designs_names_a_place_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    section = page.partition("## Designs of others")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| document")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert {row[0].split()[0] for row in rows} == {"1", "2", "3", "4", "5"}
    for row in rows:
        document, feature, where, tests = row
        assert document and feature and (ROOT / where.strip("`")).exists(), row
        assert not re.sub(r"`[^`]+`", "", tests).strip(" ,;:"), row
        path = ROOT / "tests" / "compat" / "test_designs.py"
        for name in re.findall(r"`([^`]+)`", tests):
            if name.endswith(".py"):
                path = ROOT / "tests" / name
                assert path.is_file(), f"{feature}: {name}"
            else:
                defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
                assert name in defined, f"{feature}: {name}"
    assert len(rows) > 60
