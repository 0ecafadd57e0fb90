"""The imports between the rooms of the package, from the sources; tables.py writes them into docs/architecture.md."""

import ast

from tests.architecture.source import FOLDER, imports, modules
from tests.architecture.test_imports import FLOORS

NOT_ROOMS = {"__init__", "_version"}


def room(path: str) -> str:
    """Return the room of a path below the package."""
    return path.split("/")[0].removesuffix(".py")


def about(name: str) -> str:
    """Return the first line of a room's docstring."""
    file = FOLDER / f"{name}.py" if (FOLDER / f"{name}.py").is_file() else FOLDER / name / "__init__.py"
    return (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]


def used() -> dict[str, set[str]]:
    """Return the rooms that each room imports, also inside functions."""
    rooms = {room(path) for path in modules()} - NOT_ROOMS
    found: dict[str, set[str]] = {name: set() for name in rooms}
    for path, tree in modules().items():
        for _, name in imports(path, tree):
            package, _, rest = name.partition(".")
            imported = rest.split(".")[0]
            if package == "modular_gpt" and room(path) in rooms and imported in rooms - {room(path)}:
                found[room(path)].add(imported)
    return found


HEAD = ["floor", "room", "content", "imports"]


def rows() -> list[list[str]]:
    """Return a row for each room, from the top floor down."""
    rooms = used()
    return [
        [str(floor), f"`{name}`", about(name), ", ".join(f"`{other}`" for other in sorted(rooms[name])) or "none"]
        for floor, names in reversed(list(enumerate(FLOORS)))
        for name in sorted(names)
        if name in rooms
    ]
