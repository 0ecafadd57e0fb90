"""The output of ``--help``: every group with its options, or the details of a group, an option or a setting."""

import dataclasses
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from modular_gpt.cli.app import version
from modular_gpt.cli.composition.overrides import closest_setting, our_settings
from modular_gpt.cli.composition.schema import Command, options, read_yaml, yaml_file
from modular_gpt.cli.setting_docs import setting_docs, value_text
from modular_gpt.core.errors import ConfigError, closest
from modular_gpt.core.plain_types import PlainDict, PlainMapping

EXAMPLE = 58  # columns of an example before its explanation
NAME = 22  # columns of an option's name
SETTING = 32  # columns of a setting with its default

Rows = Iterable[tuple[str, str]]


def help_text(command: Command, about: str, examples: Rows, topics: Sequence[str], where: list[Path]) -> str:
    """The help of a command: an overview, or the details of each topic.

    topics: groups, options (``gqa`` or ``attention=gqa``) or settings (``attention.window``)
    where: folders with yaml files

    Raises:
        ConfigError: a topic is no group, option or setting of the command.
    """
    if not topics:
        return overview(command, about, examples, where)
    return "\n\n".join(topic_details(command, topic, where) for topic in topics)


def overview(command: Command, about: str, examples: Rows, where: list[Path]) -> str:
    """The help text of a command."""
    program = f"mgpt-{command.name}"
    sections = [f"{program} {version()}: {about}", _table("Examples", examples)]
    choices = command.choices()
    if choices:
        sections.append("Groups: choose an option with group=option. Without one, the option marked * is used.")
    for group, choice in choices.items():
        lines = options(command, group, where)
        first = [choice.default] if choice.default in lines else []
        names = [*first, *(name for name in lines if name not in first)]
        marked = [(f"{'*' if name in first else ' '} {name}", lines[name]) for name in names]
        sections.append(_table(f"{group} - {choice.about}" if choice.about else group, marked, NAME))
    sections.append(_table("Settings, with their defaults", _settings(command.starts(where[0])), SETTING))
    sections.append(_table("More", _more(command)))
    return "\n\n".join(sections)


def _more(command: Command) -> Rows:
    program = f"mgpt-{command.name}"
    yield f"{program} --help TOPIC", "the details of a group, an option or a setting"
    if command.choices():
        yield f"{program} --multirun GROUP=A,B", "train one run after another and compare them in a table"
        yield f"{program} --config-dir FOLDER", "more options, as yaml files such as FOLDER/GROUP/mine.yaml"
    yield f"{program} --cfg job", "print every setting with the value that would be used, and stop"
    yield f"{program} --version", "print the versions of this program, Python and PyTorch"
    if command.choices():
        yield f"{program} --hydra-help", "print the help of Hydra: launchers, sweepers, tab completion"


def topic_details(command: Command, topic: str, where: list[Path]) -> str:
    """The details of a group, of the options of that name, or of a setting.

    Raises:
        ConfigError: the command has no group, option or setting of that name.
    """
    choices = command.choices()
    if topic in choices:
        return details(command, topic, where)
    group, _, option = topic.partition("=") if "=" in topic else ("", "", topic)
    found = [name for name in choices if group in ("", name) and option in options(command, name, where)]
    sections = [_option_details(command, name, option, where) for name in found]
    title, rows = topic, _setting_rows(command, topic, where)
    if not sections and not rows:
        settings = our_settings(command, topic) or our_settings(command, topic.rpartition(".")[2])
        title = f"{', '.join(settings)} ({topic} in other programs)"
        rows = [row for setting in settings for row in _setting_rows(command, setting, where)]
    if rows:
        sections.append(_table(title, rows, SETTING))
    if not sections:
        raise ConfigError(_unknown_topic(command, topic, where))
    return "\n\n".join(sections)


def _unknown_topic(command: Command, topic: str, where: list[Path]) -> str:
    choices = list(command.choices())
    names = [*choices, *(name for group in choices for name in options(command, group, where))]
    close = closest(topic, names) or closest_setting(command, topic)
    hint = f" did you mean {close!r}?" if close else ""
    listed = f" groups: {', '.join(choices)}" if choices else " --help alone lists every setting"
    return f"no group, option or setting {topic!r};{hint}{listed}"


def details(command: Command, group: str, where: list[Path]) -> str:
    """The options of a group, and every setting of each with its default."""
    named = options(command, group, where)
    files = {name: path for name in named if (path := yaml_file(where, group, name))}
    sections = [_table(f"{group} - {command.choices()[group].about}", list(named.items()), NAME)]
    if group not in command.groups():
        return "\n\n".join([*sections, *(_content(name, path) for name, path in files.items())])
    by_class: dict[type, PlainDict] = {}
    for name, schema in command.schemas(group).items():
        by_class.setdefault(type(schema.defaults), {})[name] = schema.defaults
    sections += [_shared_settings(command, group, defaults) for defaults in by_class.values()]
    registered = () if group in command.tables else command.schemas(group)
    values = {name: read_yaml(path) for name, path in files.items() if name not in registered}
    changes = [f"  {name} sets {listed}" for name, given in values.items() if (listed := _listed(given))]
    return "\n\n".join([*sections, *filter(None, ["\n".join(changes)])])


def _content(name: str, path: Path) -> str:
    return f"{name} sets\n{textwrap.indent(path.read_text(encoding='utf-8'), '    ')}"


def _shared_settings(command: Command, group: str, defaults: PlainDict) -> str:
    """The settings of options with the same dataclass, and the options that start from other values."""
    title = "Settings" if group in command.tables else f"Settings of {', '.join(defaults)}"
    first, *others = defaults
    rows = _settings(defaults[first], f"{group}.")
    if not rows:
        return f"{title}: none"
    starts = [(name, differences(defaults[first], defaults[name])) for name in others]
    lines = [f"  {name} starts from {_listed(differs)}" for name, differs in starts if differs]
    return "\n\n".join([_table(title, rows, SETTING), *filter(None, ["\n".join(lines)])])


def _option_details(command: Command, group: str, option: str, where: list[Path]) -> str:
    """The details of an option: its description, and its settings with their defaults or the values that it sets."""
    title = f"{group}={option} - {options(command, group, where)[option]}"
    path = yaml_file(where, group, option)
    if group not in command.groups():
        return title if path is None else f"{title}\n\n{_content(option, path)}"
    schemas = command.schemas(group)
    if group in command.tables or option not in schemas:
        listed = _listed({} if path is None else read_yaml(path))
        return f"{title}\n\n  {option} sets {listed}" if listed else title
    rows = _settings(schemas[option].defaults, f"{group}.")
    return f"{title}\n\n{_table('Settings, with their defaults', rows, SETTING) if rows else 'Settings: none'}"


def _setting_rows(command: Command, key: str, where: list[Path]) -> list[tuple[str, str]]:
    """Rows for a setting and those nested in it: one each, or one for each default if options differ in it."""
    roots = [("", command.starts(where[0]), "")]
    for group in command.groups():
        roots += [(name, schema.defaults, f"{group}.") for name, schema in command.schemas(group).items()]
    found: dict[tuple[str, str], list[str]] = {}
    for option, defaults, prefix in roots:
        for setting, text in _settings(defaults, prefix):
            name = setting.partition("=")[0]
            if name == key or name.startswith(f"{key}."):
                found.setdefault((setting, text), []).append(option)
    keys = [setting.partition("=")[0] for setting, _ in found]
    return [
        (setting, f"{text} Default of {', '.join(names)}." if keys.count(setting.partition("=")[0]) > 1 else text)
        for (setting, text), names in found.items()
    ]


def differences(first: Any, other: Any) -> PlainDict:
    """The settings in which a dataclass differs from another of the same class, except the name."""
    values = {field.name: getattr(other, field.name) for field in dataclasses.fields(other) if field.name != "name"}
    return {key: value for key, value in values.items() if value != getattr(first, key)}


def _listed(values: PlainMapping) -> str:
    """Settings as ``key=value`` with commas between them; the name of a component is left out."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in values.items() if key != "name")


def _settings(defaults: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A row for each setting: ``key=default`` as it is written, and its help text."""
    return list(_setting_lines(defaults, prefix))


def _setting_lines(defaults: Any, prefix: str) -> Iterator[tuple[str, str]]:
    texts = setting_docs(type(defaults))
    for field in dataclasses.fields(defaults):
        value = getattr(defaults, field.name)
        if dataclasses.is_dataclass(value):
            yield from _setting_lines(value, f"{prefix}{field.name}.")
        elif not (prefix and field.name == "name"):
            yield f"{prefix}{field.name}={value_text(value)}", texts.get(field.name, "")


def _table(title: str, rows: Rows, column: int = EXAMPLE) -> str:
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
