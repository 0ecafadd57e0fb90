"""What ``--help`` prints: every group with its options, and the settings of one group in detail."""

import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modular_gpt.cli.app import version
from modular_gpt.cli.composition.schema import Command, options, read_yaml, yaml_file

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
    parts.append(_table("Settings, with what they are otherwise", _settings(command.starts(where[0])), SETTING))
    parts.append(_table("More", _more(command)))
    return "\n\n".join(parts)


def _more(command: Command) -> Examples:
    program = f"mgpt-{command.name}"
    if command.choices():
        yield f"{program} --help GROUP", "the settings of each option of a group, such as group.setting=value"
        yield f"{program} --multirun GROUP=A,B", "one run after another, and a table that compares them"
        yield f"{program} --config-dir FOLDER", "more options, as yaml files such as FOLDER/GROUP/mine.yaml"
    yield f"{program} --cfg job", "every setting as it would be used, without running anything"
    yield f"{program} --version", "the version"
    if command.choices():
        yield f"{program} --hydra-help", "what else Hydra can do: launchers, sweepers, tab completion"


def details(command: Command, group: str, where: list[Path]) -> str:
    """The options of a group, and every setting of each with its default."""
    named = options(command, group, where)
    files = {name: path for name in named if (path := yaml_file(where, group, name))}
    parts = [_table(f"{group} - {command.choices()[group].about}", list(named.items()), NAME)]
    if group not in command.groups():
        parts += [
            f"{name} is\n{textwrap.indent(path.read_text(encoding='utf-8'), '    ')}" for name, path in files.items()
        ]
        return "\n\n".join(parts)
    by_class: dict[type, list[str]] = {}
    schemas = command.schemas(group)
    for name, schema in schemas.items():
        by_class.setdefault(type(schema.defaults), []).append(name)
    for kind, names in by_class.items():
        parts.append(_one_kind(command, group, kind, {name: schemas[name].defaults for name in names}))
    starts = [f"  {name} sets {_listed(values)}" for name, path in files.items() if (values := read_yaml(path))]
    return "\n\n".join([*parts, *filter(None, ["\n".join(starts)])])


def _one_kind(command: Command, group: str, kind: type, defaults: dict[str, Any]) -> str:
    """The settings that some options share, and where each starts from other values than the first."""
    title = "Settings" if group in command.tables else f"Settings of {', '.join(defaults)}"
    first, *others = defaults
    rows = _settings(defaults[first], f"{group}.")
    if not rows:
        return f"{title}: none"
    parts = [_table(title, rows, SETTING)]
    if group not in command.tables and not all(words for _, words in rows):  # said otherwise than a line for each
        parts.append(textwrap.indent(inspect.cleandoc(kind.__doc__ or ""), "    "))
    starts = [(name, differences(defaults[first], defaults[name])) for name in others]
    lines = [f"  {name} starts from {_listed(differs)}" for name, differs in starts if differs]
    return "\n\n".join([*parts, *filter(None, ["\n".join(lines)])])


def differences(first: Any, other: Any) -> dict[str, Any]:
    """The settings in which a dataclass differs from another of its kind, but for the name."""
    values = {field.name: getattr(other, field.name) for field in dataclasses.fields(other) if field.name != "name"}
    return {key: value for key, value in values.items() if value != getattr(first, key)}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={spelled(value)}" for key, value in values.items() if key != "name")


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
            rows.append((f"{prefix}{field.name}={spelled(value)}", about.get(field.name, "")))
    return rows


def spelled(value: Any) -> str:
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
