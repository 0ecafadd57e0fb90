"""The package as syntax trees, for the tests in this folder."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "modular_gpt"
FOLDER = Path(__file__).resolve().parents[2] / PACKAGE


@cache
def modules() -> dict[str, ast.Module]:
    """Path below the package -> syntax tree, for every file of the package."""
    paths = sorted(path for path in FOLDER.rglob("*.py"))
    return {path.relative_to(FOLDER).as_posix(): ast.parse(path.read_text(), str(path)) for path in paths}


def imports(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything a file imports, wherever in it: `from a import b` is a.b."""
    package = [PACKAGE, *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
