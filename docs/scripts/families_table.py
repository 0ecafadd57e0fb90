"""The published families that are read and written; tables.py writes the table into docs/pretrained.md."""

import ast
import json
from pathlib import Path

from modular_gpt.pretrained import FAMILIES, families

HEAD = ["`model_type`", "class in transformers", "table", "lines", "read", "written"]
MEASURED = Path(__file__).with_name("family_differences.json")


def entries() -> dict[str, tuple[str, int]]:
    """Return the file and the number of lines of each family's table entry."""
    found = {}
    for path in sorted(Path(families.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Family":
                name = ast.literal_eval(node.args[0])
                found[name] = (path.name, (node.end_lineno or node.lineno) - node.lineno + 1)
    return found


def rows() -> list[list[str]]:
    places, differences = entries(), json.loads(MEASURED.read_text())
    return [
        [
            *(f"`{name}`", f"`{family.architecture}`", f"`{places[name][0]}`", str(places[name][1])),
            *(_shown(differences.get(name, {}).get(way)) for way in ("read", "written")),
        ]
        for name, family in sorted(FAMILIES.items())
    ]


def _shown(difference: float | None) -> str:
    return "not measured" if difference is None else "0" if difference == 0 else f"{difference:.0e}"
