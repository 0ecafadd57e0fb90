"""What ``--help`` prints: every group with its options, and the settings of one group in detail."""

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modular_gpt.cli._app import version
from modular_gpt.cli._settings import Command, options

EXAMPLE = 58  # columns of an example before what it does
NAME = 22  # columns of an option's name
SETTING = 32  # columns of a setting with its default

ABOUT_FIELD = re.compile(
    r"(?:^|;)\s*(\w+(?:, \w+)*)( \w+)?: ", re.MULTILINE
)  # in docstrings: `field: words; other: words`

Examples = Iterable[tuple[str, str]]


def overview(command: Command, about: str, examples: Examples, where: list[Path]) -> str:
    """The whole help text of a command."""
    program = f"mgpt-{command.name}"
    parts = [f"{program} {version()}: {about}", _table("Examples", examples)]
    choices = command.choices()
    if choices:
        parts.append("Groups: choose an option with group=option; the one marked * is taken otherwise.")
    for group, choice in choices.items():
        lines = options(command, group, where)
        first = [choice.default] if choice.default in lines else []
        names = [*first, *(name for name in lines if name not in first)]
        marked = [(f"{'*' if name in first else ' '} {name}", lines[name]) for name in names]
        parts.append(_table(f"{group} - {choice.about}" if choice.about else group, marked, NAME))
    parts.append(_table("Settings, with what they are otherwise", _settings(command.plain()), SETTING))
    more = [
        (f"{program} --help GROUP", "the settings of each option of a group, such as group.setting=value"),
        (f"{program} --cfg job", "what would be run, with every setting, without running it"),
        (
            f"{program} --config-dir FOLDER",
            "use yaml files of your own too, such as FOLDER/GROUP/mine.yaml for GROUP=mine",
        ),
        (f"{program} --version", "the version"),
    ]
    if choices:
        more.insert(2, (f"{program} --multirun GROUP=A,B", "one run after another, and a table that compares them"))
        more.append((f"{program} --hydra-help", "what else Hydra can do: launchers, sweepers, tab completion"))
    parts.append(_table("More", more))
    return "\n\n".join(parts)


def details(command: Command, group: str, where: list[Path]) -> str:
    """The options of a group, and every setting of each with its default."""
    choice = command.choices()[group]
    parts = [_table(f"{group} - {choice.about}", list(options(command, group, where).items()), NAME)]
    if group not in command.groups():
        return parts[0]
    by_class: dict[type, list[str]] = {}
    schemas = command.schemas(group)
    for name, schema in schemas.items():
        by_class.setdefault(type(schema.defaults), []).append(name)
    for kind, names in by_class.items():
        first = schemas[names[0]].defaults
        rows = _settings(first, f"{group}.")
        title = "Settings" if group in command.tables else f"Settings of {', '.join(names)}"
        if not rows:
            parts.append(f"{title}: none")
            continue
        parts.append(_table(title, rows, SETTING))
        if not all(words for _, words in rows):  # said in another form than a line for each
            parts.append(textwrap.indent(inspect.cleandoc(kind.__doc__ or ""), "    "))
        for name in names[1:]:
            differs = _differences(first, schemas[name].defaults)
            parts.append(f"  {name} starts from {', '.join(f'{key}={value}' for key, value in differs.items())}")
    return "\n\n".join(parts)


def _differences(first: Any, other: Any) -> dict[str, str]:
    values = {field.name: getattr(other, field.name) for field in dataclasses.fields(other) if field.name != "name"}
    return {key: _spelled(value) for key, value in values.items() if value != getattr(first, key)}


def _about_fields(kind: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say about fields, where they say ``field: words``."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        documentation = inspect.cleandoc(base.__doc__ or "")
        matches = list(ABOUT_FIELD.finditer(documentation))
        for match, end in zip(matches, [each.start() for each in matches[1:]] + [len(documentation)], strict=False):
            words = " ".join(documentation[match.end() : end].partition("\n\n")[0].split())
            condition = f"{match[2].strip()}: " if match[2] == " null" else ""
            for name in match[1].split(", "):
                found.setdefault(name, (condition + words).strip(" ;."))
    return found


def _settings(defaults: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A row for each setting: how it is written, with its default, and what its dataclass says about it."""
    about = _about_fields(type(defaults))
    rows = []
    for field in dataclasses.fields(defaults):
        value = getattr(defaults, field.name)
        if dataclasses.is_dataclass(value):
            rows += _settings(value, f"{prefix}{field.name}.")
        elif not (prefix and field.name == "name"):
            rows.append((f"{prefix}{field.name}={_spelled(value)}", about.get(field.name, "")))
    return rows


def _spelled(value: Any) -> str:
    """A value as it is written on the command line."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _table(title: str, rows: Examples, column: int = EXAMPLE) -> str:
    width = max(80, min(shutil.get_terminal_size((120, 24)).columns, 140))
    lines = [title]
    for left, right in rows:
        start = f"  {left:<{column}} "
        if len(start) > column + 3:
            lines.append(start.rstrip())
            if not right:
                continue
            start = " " * (column + 3)
        lines += textwrap.wrap(
            right, width, initial_indent=start, subsequent_indent=" " * (column + 3), drop_whitespace=True
        ) or [start.rstrip()]
    return "\n".join(lines)
