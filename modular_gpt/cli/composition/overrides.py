"""The words of a command line as Hydra's override language spells them.

Hydra's language gives meaning to ``, ' = # { } $`` and to words such as ``null``, so text is quoted before Hydra
reads it. A setting that exists needs no ``+`` and one that does not exist is refused with or without it, so the plus
is dropped. What begins with ``hydra`` is Hydra's own business and passes unchanged.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, ValueType
from hydra.errors import HydraException
from omegaconf import MISSING

from modular_gpt.cli.composition.schema import TARGET, Command, names_of, options
from modular_gpt.core.aliases import SETTINGS
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.registry import slots

KEY = r"""[^\s=+~."'{}]+"""  # one part of a dotted key
WORD = re.compile(rf"\+{{0,2}}(?P<key>{KEY}(\.{KEY})*)=(?P<value>.*)", re.DOTALL)
BACKSLASHES_BEFORE_INTERPOLATION = re.compile(r"(\\*)\$\{")
QUOTED_KEY = re.compile(r"""(['"])([\w.*-]+)\1\s*:""")  # in a mapping, where Hydra wants keys without quotes
QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
NONE = "null"
CLOSE = 0.75  # likeness of a word that is meant for sure, or of one that is far away
MOST_VALUES = 50  # of a sweep that are tried before it begins
SELECTS = re.compile(r"[\w.+/-]+(,[\w.+/-]+)*")  # options by name; Hydra's functions such as glob(*) are not read here


@dataclass(frozen=True)
class Override:
    """A setting and what it is set to, as typed."""

    key: str
    value: str


def read_overrides(
    command: Command, words: Sequence[str], where: list[Path], sweep: bool = False
) -> tuple[list[Override], list[str]]:
    """What was typed, and how Hydra spells it.

    where: folders with yaml files; sweep: several jobs, so that commas separate values

    Raises:
        ConfigError: a word is no setting, an option does not exist, or a key names code.
    """
    typed, spelled = [], []
    for word in words:
        if word.startswith("~"):
            raise ConfigError(f"{word!r}: nothing can be taken away; set it to {NONE}, or choose another option")
        match = WORD.fullmatch(word)
        if match is None:
            raise ConfigError(f"cannot read {word!r}: settings are written key=value, such as {_example(command)}")
        key, value = command.former_names.get(match["key"], match["key"]), match["value"]
        if TARGET in key:
            raise ConfigError(f"{key!r} cannot be set: no setting names code to run")
        if key == "hydra":
            raise ConfigError(
                f"{word!r}: Hydra's own settings are given one by one, hydra.<setting>=...; see --hydra-help"
            )
        if re.match(r"hydra\b", key):
            spelled.append(word)
            continue
        if "." not in key and key not in (first := {*command.choices(), *names_of(command.plain)}):
            raise ConfigError(unknown_setting(command, key, list(first)))
        group, _, setting = key.partition(".")
        if setting == "name" and group in slots():
            raise ConfigError(f"{word!r}: choose the option itself, {group}={value}")
        typed.append(Override(key, value))
        spelled.append(_spelled(command, key, value, where, sweep))
    return typed, spelled


def _example(command: Command) -> str:
    return "attention=gqa" if "attention" in command.groups() else "max_new_tokens=100"


def _spelled(command: Command, key: str, value: str, where: list[Path], sweep: bool) -> str:
    if key in command.choices():
        _check_options(command, key, value, where, sweep)
        return f"{key}={value}"
    hints = command.hints(key)
    if any(dict in (hint, get_origin(hint)) for hint in hints):  # an open mapping, which takes new keys
        return f"++{key}={_quoted_if_needed(key, QUOTED_KEY.sub(_without_quotes, value))}"
    if any(get_origin(hint) is list and _holds_text(hint) for hint in hints) and not _is_list(key, value):
        return f"{key}=[{quoted(value)}]"
    if any(get_origin(hint) is list and _holds_text(hint) for hint in hints):
        return f"{key}={_escapes_read(value)}"
    if not sweep and any(_holds_text(hint) for hint in hints) and not _is_value(key, value, hints):
        return f"{key}={quoted(value)}"
    return f"{key}={_quoted_if_needed(key, value)}"


def _check_options(command: Command, group: str, value: str, where: list[Path], sweep: bool) -> None:
    known = options(command, group, where)
    if not SELECTS.fullmatch(value):
        if sweep:
            return
        raise ConfigError(unknown(group, value, known))
    names = value.split(",")
    if len(names) > 1 and not sweep:
        raise ConfigError(f"{group}={value} names {len(names)} options: add --multirun to run them one after another")
    for name in names:
        if name not in known and name.removesuffix(".yaml") not in known and not _may_be_null(command, group, name):
            raise ConfigError(unknown(group, name, known))


def _may_be_null(command: Command, group: str, name: str) -> bool:
    return name == NONE and group not in command.groups()


def _holds_text(hint: Any) -> bool:
    return hint is Any or str in (hint, *get_args(hint))


def _is_value(key: str, value: str, hints: list[Any]) -> bool:
    """Whether a value of a setting that holds text is meant as null or as a list."""
    if value == NONE:
        return any(hint is Any or type(None) in get_args(hint) for hint in hints)
    return any(hint is Any or list in (hint, get_origin(hint)) for hint in hints) and _is_list(key, value)


def _without_quotes(key: re.Match[str]) -> str:
    return f"{key[2]}:"


def _is_list(key: str, value: str) -> bool:
    return value.startswith("[") and value.endswith("]") and _parses(key, value)


def _escapes_read(value: str) -> str:
    """A list in which each text in double quotes means what it means in YAML, where "\\n" is a line end."""

    def read(match: re.Match[str]) -> str:
        try:
            text = yaml.safe_load(match[0]) if match[0].startswith('"') else None
        except yaml.YAMLError:  # no escape that YAML knows: as it stands
            text = None
        return quoted(text) if isinstance(text, str) else match[0]

    return QUOTED.sub(read, value)


def _quoted_if_needed(key: str, value: str) -> str:
    return value if _parses(key, value) else quoted(value)


def _parses(key: str, value: str) -> bool:
    try:
        OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return False
    return True


def quoted(text: str) -> str:
    """Text as a quoted string of Hydra's language, which means exactly this text.

    Raises:
        ConfigError: it is the one text that OmegaConf reads as a missing value, however it is quoted.
    """
    if text == MISSING:
        raise ConfigError(f"the text {text!r} cannot be given here: it is the sign of a value that is missing")
    return QuotedString(text=without_interpolation(text), quote=Quote.single).with_quotes()


def without_interpolation(text: str) -> str:
    """The text as OmegaConf reads it back unchanged: every interpolation in it is escaped."""
    return BACKSLASHES_BEFORE_INTERPOLATION.sub(lambda match: match[1] * 2 + r"\${", text)


def unknown_setting(command: Command, key: str, siblings: Sequence[str]) -> str:
    """The sentence for a key that does not exist, with the closest that does; ``siblings`` exist beside it."""
    parent, _, name = key.rpartition(".")
    if command.hints(key):
        able = [each for each, schema in command.schemas(parent).items() if hasattr(schema.defaults, name)]
        return f"the chosen {parent} has no setting {name!r}; use it with {parent}={' or '.join(able)}"
    where = f" of {parent}" if parent else ""
    valid = sorted(sibling for sibling in siblings if sibling != "hydra")
    ours = (SETTINGS[name].targets[0] if name in SETTINGS else name).removesuffix(".name")
    everything = [*command.settings(), *command.choices()]
    same = [each for each in everything if each == ours or each.endswith(f".{ours}")]
    beside = difflib.get_close_matches(name, valid, n=1, cutoff=CLOSE) if parent and ours == name else []
    close = beside or same[:1] or difflib.get_close_matches(name, valid, n=1)
    if not close:
        leaves = {each.rpartition(".")[2]: each for each in reversed(everything)}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(ours, leaves, n=1, cutoff=CLOSE)]
    hint = f" did you mean {close[0]!r}?" if close else ""
    return f"no setting {name!r}{where};{hint} there are: {', '.join(valid)}"


def jobs_to_try(command: Command, spelled: Sequence[str]) -> list[list[str]]:
    """Overrides of the first job of a sweep, and of that job with each other value of each setting.

    What only a sweeper can expand is left out, and options of groups are known to exist.
    """
    first: list[str] = []
    others: list[tuple[int, str]] = []
    for override in OverridesParser.create().parse_overrides(list(spelled)):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            key = str(override.input_line).partition("=")[0]
            values = list(islice(override.sweep_string_iterator(), MOST_VALUES))
            first.append(f"{key}={values[0]}")
            if override.key_or_group not in command.choices():
                others += [(len(first) - 1, f"{key}={value}") for value in values[1:]]
    return [first, *([*first[:place], word, *first[place + 1 :]] for place, word in others)]
