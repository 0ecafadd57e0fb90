"""Tab completion from the stored table of a command, without Hydra and PyTorch, whose imports are too slow for it."""

import dataclasses
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modular_gpt.cli.composition.schema import Command, Schema, options
from modular_gpt.cli.setting_docs import value_text

SEPARATORS = {
    "query=bash": " ",
    "query=zsh": " ",
    "query=fish": "\n",
}  # between completions, by shell
FILE_SIGNS = (".", "/", "~")  # a value that begins with one is completed as a path
ONLY_HYDRA = ("hydra", "+", "~")  # beginnings of words that only Hydra can complete


def completed(command: Command, settings: Sequence[str], where: list[Path]) -> str | None:
    """The completions of the last word of ``COMP_LINE``, in the form for the shell; None: only Hydra can complete it.

    settings: of ``--shell-completion``, such as query=bash
    """
    separator = SEPARATORS.get(settings[0]) if len(settings) == 1 else None
    line = os.environ.get("COMP_LINE")
    if separator is None or line is None:
        return None
    point = os.environ.get("COMP_POINT", "")
    line = line[: int(point)] if point.isdecimal() else line
    _, *words = line.split() or [""]
    word = "" if line.endswith(" ") or not words else words.pop()
    return (
        None if word.startswith(ONLY_HYDRA) else separator.join(sorted(set(_completions(command, words, word, where))))
    )


def _completions(command: Command, words: list[str], word: str, where: list[Path]) -> Iterator[str]:
    """Yield the words that ``word`` may become: groups, options, settings, defaults and paths."""
    key, equals, value = word.partition("=")
    if value.startswith(FILE_SIGNS):
        yield from (f"{key}={path}" for path in _paths(value))
    elif equals and key in command.choices():
        before, comma, _ = value.rpartition(",")  # several values, for --multirun
        names = (f"{key}={before}{comma}{name}" for name in options(command, key, where))
        yield from (name for name in names if name.startswith(word))
    elif equals:
        default = dict(_settings(command, words, where, key)).get(key)
        if default is not None and (text := f"{key}={value_text(default)}").startswith(word):
            yield text
    else:
        names = (f"{group}=" for group in command.choices())
        yield from (name for name in names if name.startswith(word))
        for setting, _ in _settings(command, words, where, word):
            if setting.startswith(word):
                rest, dot, _ = setting[len(word) :].partition(".")
                yield f"{word}{rest}{dot or '='}"


def _paths(prefix: str) -> Iterator[str]:
    """The paths that begin with ``prefix``, with ``~`` as it was typed."""
    expanded = os.path.expanduser(prefix)
    for path in glob.glob(f"{glob.escape(expanded)}*"):
        yield prefix + path[len(expanded) :]


def _settings(command: Command, words: list[str], where: list[Path], word: str) -> Iterator[tuple[str, Any]]:
    """The dotted settings that may begin with ``word``, with their defaults: those of the chosen options."""
    yield from _dotted(command.starts(where[0]), "")
    chosen = dict(word.split("=", 1) for word in words if "=" in word)
    for group in command.groups():
        if word.startswith(f"{group}."):
            yield from _dotted(_chosen(command, group, chosen.get(group)).defaults, f"{group}.")
        else:
            yield f"{group}.", None


def _chosen(command: Command, group: str, option: str | None) -> Schema:
    """The schema of the option that a command line chooses in a group, or else of its default."""
    schemas, choices = command.schemas(group), command.choices()
    default = choices[group].default if group in choices else ""
    return schemas.get(option or default) or next(iter(schemas.values()))


def _dotted(defaults: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(defaults):
        value = getattr(defaults, field.name)
        if dataclasses.is_dataclass(value):
            yield from _dotted(value, f"{prefix}{field.name}.")
        elif not (prefix and field.name == "name"):
            yield f"{prefix}{field.name}", value
