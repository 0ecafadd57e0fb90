"""The page on injected faults names tests that there are."""

import ast
import re
from fnmatch import fnmatch

from tests.docs.pages import ROOT

ROW = re.compile(r"^\| (?P<row>R\d+) \|(.*\|){2} (?P<where>.*) \| .* \|$", re.MULTILINE)


def test_every_row_names_files_and_tests_that_exist() -> None:
    page = (ROOT / "docs" / "testing.md").read_text()
    rows = {match["row"]: re.findall(r"`([^`]+)`", match["where"]) for match in ROW.finditer(page)}
    assert list(rows) == [f"R{number}" for number in range(1, 20)]
    for row, names in rows.items():
        files, folder = [], ROOT
        for name in names:
            if name.endswith(".py"):
                path = ROOT / "tests" / name if "/" in name else folder / name
                folder = path.parent
                assert path.is_file(), f"{row}: {name}"
                files.append(path)
        defined = {
            node.name
            for path in files
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        for name in names:
            assert name.endswith(".py") or any(fnmatch(each, name) for each in defined), f"{row}: {name}"
