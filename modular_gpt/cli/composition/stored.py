"""The commands as stored in a table, which is read without PyTorch: for help, tab completion, and mistakes in settings.

docs/scripts/stored_commands.py writes ``stored_commands.json`` from the dataclasses of the settings. No value of a run
comes from it, since the command composes its config again from the dataclasses. It is not used if it may differ from
them: after a change of the source files from which it was made, with components of other packages, or in a process that
has imported components already.
"""

import functools
import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from modular_gpt.cli.composition.schema import SIZES, Command, Schema
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import COMPONENTS, PLUGINS, slots

PACKAGE = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("stored_commands.json")
TYPES: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "dict": dict, "list": list,
                         "none": type(None), "any": Any}  # fmt: skip
SKIPPED = re.compile(r"(async )?def |import |from ")  # statements whose lines do not change settings


@dataclass(frozen=True)
class StoredCommand(Command):
    """A command whose components come from the table; ``components_by_slot``: their schemas."""

    components_by_slot: dict[str, dict[str, Schema]] = field(default_factory=dict)

    def slot_names(self) -> list[str]:
        return list(self.components_by_slot)

    def components(self) -> list[tuple[str, Any]]:
        return [("stored", self.name)]

    def schemas(self, group: str) -> dict[str, Schema]:
        return self.components_by_slot[group] if group in self.components_by_slot else super().schemas(group)


def stored(name: str) -> StoredCommand | None:
    """The command ``name`` from the table; None if it is not in the table, or the table may differ from the code."""
    table = None if slots() or os.environ.get(PLUGINS) else _fresh_table()
    return None if table is None or name not in table["commands"] else read_command(name, table)


@cache
def _fresh_table() -> PlainDict | None:
    """The table, read once per process; None if a package adds components, or a source of the table has changed."""
    if entry_points(group=COMPONENTS) or not TABLE.is_file():
        return None
    table: PlainDict = json.loads(TABLE.read_text(encoding="utf-8"))
    return table if fingerprints(table["folders"], table["sources"]) == table["sources"] else None


def fingerprints(folders: list[str], files: Mapping[str, str] | list[str]) -> dict[str, str]:
    """The fingerprint of each source file, by its path in the package: of files, and of all files in folders."""
    found = {PACKAGE / name for name in files} | {path for name in folders for path in (PACKAGE / name).glob("*.py")}
    return {path.relative_to(PACKAGE).as_posix(): fingerprint(path) for path in sorted(found) if path.is_file()}


def fingerprint(path: Path) -> str:
    """A hash of the lines of a source file outside functions, imports and comments, where settings are declared."""
    kept, skipped = hashlib.sha256(), -1  # indentation of the statement whose lines are skipped
    for line in path.read_text(encoding="utf-8").splitlines():
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if not bare or bare.startswith("#") or (skipped >= 0 and (indent > skipped or bare.startswith(")"))):
            continue
        skipped = indent if SKIPPED.match(bare) else -1
        if skipped < 0:
            kept.update(f"{bare}\n".encode())
    return kept.hexdigest()[:12]


def read_command(name: str, table: PlainMapping) -> StoredCommand:
    """A command from the table."""
    given = table["commands"][name]
    classes = _Classes(table["classes"])
    return StoredCommand(
        name=name,
        plain=classes(given["plain"]),
        tables={group: classes(key) for group, key in given["tables"].items()},
        slots=bool(given["slots"]),
        former_names=given["former_names"],
        sizes={group: SIZES[group] for group in given["sizes"]},
        components_by_slot={
            slot: {
                option: Schema(entry["summary"], classes(entry["class"])(**entry["values"]))
                for option, entry in options.items()
            }
            for slot, options in given["slots"].items()
        },
    )


class _Classes:
    """The dataclasses of the table by name, each made once."""

    def __init__(self, described: PlainMapping) -> None:
        self._described = described
        self._made: dict[str, Any] = {}

    def __call__(self, key: str) -> Any:
        if key not in self._made:
            given = self._described[key]
            texts = "\n\n".join(f"{name}: {text}" for name, text in given["texts"].items())
            fields = [(field["name"], self._type(field["type"]), self._default(field)) for field in given["fields"]]
            self._made[key] = make_dataclass(given["name"], fields, namespace={"__doc__": texts})
        return self._made[key]

    def _type(self, given: Any) -> Any:
        if isinstance(given, str):
            return TYPES[given]
        name, *inner = given
        if name == "class":
            return self(inner[0])
        types = [self._type(item) for item in inner]
        if name == "union":
            return functools.reduce(operator.or_, types)
        return dict[types[0], types[1]] if name == "dict" else list[types[0]]  # type: ignore[valid-type]

    def _default(self, given: PlainMapping) -> Any:
        if given["type"][0] == "class":
            return field(default_factory=self(given["type"][1]))
        value = given["default"]
        copied: Callable[[], Any] = functools.partial(json.loads, json.dumps(value))
        return field(default_factory=copied) if isinstance(value, (dict, list)) else value
