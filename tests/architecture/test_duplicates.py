"""No duplicated logic: code needed in two places is a function, a base class or a table row."""

import ast
from collections import defaultdict

from tests.architecture.source import FOLDER, modules

LINES = 6  # number of consecutive equal lines of code that counts as duplicated logic


def declarations(tree: ast.Module) -> set[int]:
    """Numbers of the lines without logic: imports, docstrings, signatures, and the fields of classes."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= lines_of(node)
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node) is not None:
            found |= lines_of(node.body[0])
        if not isinstance(node, ast.Module):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            found |= set(range(first, max(node.body[0].lineno, first + 1)))
        if isinstance(node, ast.ClassDef):
            found |= {line for field in node.body if isinstance(field, ast.AnnAssign) for line in lines_of(field)}
    return found


def lines_of(node: ast.stmt) -> set[int]:
    assert node.end_lineno is not None
    return set(range(node.lineno, node.end_lineno + 1))


def code(source: str) -> list[tuple[int, str]]:
    """Number and text of the lines with logic, without indentation and comments."""
    left_out = declarations(ast.parse(source))
    stripped = [(number, line.partition("  # ")[0].strip()) for number, line in enumerate(source.splitlines(), 1)]
    return [(number, line) for number, line in stripped if line and number not in left_out and not line.startswith("#")]


def repeated(sources: dict[str, str]) -> list[list[str]]:
    """The places, as `file:line`, of every window of ``LINES`` lines of code that occurs more than once."""
    places: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for path, source in sources.items():
        lines = code(source)
        for first in range(len(lines) - LINES + 1):
            window = lines[first : first + LINES]
            places[tuple(line for _, line in window)].append(f"{path}:{window[0][0]}")
    return [found for found in places.values() if len(found) > 1]


def test_no_logic_is_duplicated() -> None:
    assert repeated({path: (FOLDER / path).read_text() for path in modules()}) == []


def test_duplicates_are_found_despite_indentation_and_comments() -> None:
    body = [f"x{index} = f({index})" for index in range(LINES)]
    first = "def a():\n" + "\n".join(f"    {line}" for line in body)
    second = "class B:\n    def b(self):\n" + "\n".join(f"        {line}  # why" for line in body)
    assert repeated({"one.py": first, "two.py": second}) == [["one.py:2", "two.py:3"]]
    assert repeated({"one.py": first, "two.py": second.replace("f(0)", "g(0)")}) == []


def test_declarations_are_not_logic() -> None:
    fields = "class A:\n" + "\n".join(f"    field{index}: int = {index}" for index in range(LINES))
    signature = "def f(\n" + "\n".join(f"    x{index}: int," for index in range(LINES)) + "\n) -> None: ..."
    assert repeated({"one.py": f"{fields}\n{signature}", "two.py": f"{fields}\n{signature}"}) == []
