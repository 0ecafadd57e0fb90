"""Write the table of commands that the command line reads before PyTorch is imported.

``modular_gpt/cli/composition/stored.py`` reads it. tables.py writes it with the other tables.
"""

import dataclasses
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

from modular_gpt.cli.bench_task import BENCH
from modular_gpt.cli.compare_task import COMPARE
from modular_gpt.cli.composition.schema import Command
from modular_gpt.cli.composition.stored import PACKAGE, TABLE, TYPES, fingerprints
from modular_gpt.cli.composition.train_config import TRAIN
from modular_gpt.cli.convert_task import CONVERT
from modular_gpt.cli.evaluate_task import EVAL
from modular_gpt.cli.generate_task import GENERATE
from modular_gpt.cli.inspect_task import INSPECT
from modular_gpt.cli.setting_docs import setting_docs
from modular_gpt.core.registry import Entry, entries

COMMANDS = (TRAIN, GENERATE, EVAL, CONVERT, COMPARE, BENCH, INSPECT)
# Files with settings of dataclasses that are derived from others at run time.
DERIVED = ["cli/composition/train_config.py", "cli/generate_task.py", "generation/config.py", "generation/sampling.py",
        "model/config.py", "training/config.py"]  # fmt: skip
NAMES = {hint: name for name, hint in TYPES.items()}


class Writer:
    """Collector of the dataclasses of commands, and of the files that define them."""

    def __init__(self) -> None:
        self.classes: dict[str, Any] = {}
        self.files = set(DERIVED)

    def add(self, cls: Any, key: str) -> str:
        """Store a dataclass under a key, which is returned."""
        if key not in self.classes:
            self.classes[key] = None  # reserves the place before nested dataclasses
            hints, defaults = typing.get_type_hints(cls), cls()
            self.classes[key] = {
                "name": cls.__name__,
                "texts": setting_docs(cls),
                "fields": [
                    {"name": each.name, **self.described(hints[each.name], getattr(defaults, each.name), key)}
                    for each in dataclasses.fields(cls)
                ],
            }
            for base in cls.__mro__:
                if base.__module__.startswith("modular_gpt."):
                    path = Path(inspect.getfile(inspect.getmodule(base) or base))
                    self.files.add(path.relative_to(PACKAGE).as_posix())
        return key

    def described(self, hint: Any, default: Any, owner: str) -> dict[str, Any]:
        """The type of a field, and its default where it is no dataclass."""
        if dataclasses.is_dataclass(hint):
            return {"type": ["class", self.add(hint, f"{owner}.{getattr(hint, '__name__', '')}")]}
        return {"type": plain_type(hint), "default": default}

    def command(self, command: Command) -> dict[str, Any]:
        """A command: its settings by class, and its components with the values that differ from the class's."""
        slots: dict[str, Any] = {}
        for slot in command.slot_names():
            slots[slot] = {}
            for name, entry in own(slot).items():
                cls, default = type(entry.default()), entry.default()
                first = next(option for option, other in own(slot).items() if other.component.Config is cls)
                values = {each.name: getattr(default, each.name) for each in dataclasses.fields(cls)}
                same = cls()
                slots[slot][name] = {
                    "summary": entry.summary,
                    "class": self.add(cls, f"{slot}.{first}"),
                    "values": {key: value for key, value in values.items() if value != getattr(same, key)},
                }
        return {
            "plain": self.add(command.plain, command.name),
            "tables": {group: self.add(cls, f"{command.name}.{group}") for group, cls in command.tables.items()},
            "former_names": command.former_names,
            "sizes": list(command.sizes),
            "slots": slots,
        }


def own(slot: str) -> dict[str, Entry]:
    """The components of this package."""
    return {
        name: entry for name, entry in entries(slot).items() if entry.component.__module__.startswith("modular_gpt.")
    }


def plain_type(hint: Any) -> Any:
    """Return a type as plain JSON."""
    if hint in NAMES:
        return NAMES[hint]
    origin, inner = typing.get_origin(hint), [plain_type(each) for each in typing.get_args(hint)]
    if origin in (types.UnionType, typing.Union):
        return ["union", *inner]
    assert origin in (dict, list), f"the table of commands has no representation of {hint}"
    return [NAMES[origin], *inner]


def content() -> str:
    """Return the table as JSON."""
    writer = Writer()
    commands = {command.name: writer.command(command) for command in COMMANDS}
    components = [entry.component for slot in TRAIN.slot_names() for entry in own(slot).values()]
    modules = {Path(inspect.getfile(component)) for component in components}
    folders = sorted({path.parent.relative_to(PACKAGE).as_posix() for path in modules})
    sources = fingerprints(folders, sorted(writer.files))
    table = {"folders": folders, "sources": sources, "classes": writer.classes, "commands": commands}
    return json.dumps(table, indent=1, ensure_ascii=False) + "\n"


def write() -> None:
    """Write the table if it differs."""
    text = content()
    if not TABLE.is_file() or TABLE.read_text(encoding="utf-8") != text:
        TABLE.write_text(text, encoding="utf-8")
