"""Which room of the package imports which, read off the source, for the table in docs/architecture.md."""

import ast

from tests.architecture.source import FOLDER, imports, modules
from tests.architecture.test_imports import FLOORS

NOT_ROOMS = {"__init__", "_version"}


def room(path: str) -> str:
    """The first part of a path or dotted name below the package."""
    return path.split("/")[0].removesuffix(".py")


def about(name: str) -> str:
    """The first line of a room's docstring."""
    file = FOLDER / f"{name}.py" if (FOLDER / f"{name}.py").is_file() else FOLDER / name / "__init__.py"
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def used() -> dict[str, set[str]]:
    """Room -> the rooms it imports anywhere, also inside functions."""
    rooms = {room(path) for path in modules()} - NOT_ROOMS
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for path, tree in modules().items():
        for _, name in imports(path, tree):
            package, _, rest = name.partition(".")
            there = rest.split(".")[0]
            if package == "modular_gpt" and room(path) in rooms and there in rooms - {room(path)}:
                found[room(path)].add(there)
    return found


HEAD = ["floor", "room", "content", "imports"]


def rows() -> list[list[str]]:
    """From the top floor down."""
    rooms = used()
    return [
        [str(floor), f"`{name}`", about(name), ", ".join(f"`{other}`" for other in sorted(rooms[name])) or "none"]
        for floor, names in reversed(list(enumerate(FLOORS)))
        for name in sorted(names)
        if name in rooms
    ]
