"""The settings of a command line in Hydra's override language.

Hydra's language gives a meaning to ``, ' = # { } $`` and to ``null``, so text is quoted before Hydra reads it. A
leading ``+`` is dropped: an existing setting needs none, and other settings are refused with or without it. Settings of
Hydra's launchers and sweepers pass unchanged if several runs are started; other settings of Hydra are refused.
"""

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
from modular_gpt.core.aliases import SETTINGS, component_names, missing_hint, no_counterpart, our_value
from modular_gpt.core.errors import ConfigError, closest, printable, unknown

KEY = r"""[^\s=+~."'{}]+"""  # one component of a dotted key
ARGUMENT = re.compile(rf"\+{{0,2}}(?P<key>{KEY}(\.{KEY})*)=(?P<value>.*)", re.DOTALL)
BACKSLASHES_BEFORE_INTERPOLATION = re.compile(r"(\\*)\$\{")
QUOTED_KEY = re.compile(r"""(['"])([\w.*-]+)\1\s*:""")  # in a mapping, whose keys Hydra takes without quotes
QUOTED = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
YAML_SUFFIX = re.compile(r"\.yaml(?=,|$)")
NONE = "null"
MAX_VALUES = 50  # of each setting in a sweep, composed before the sweep begins
HYDRA_IN_SWEEPS = re.compile(r"hydra[/.](launcher|sweeper)\b|hydra\.sweep\.dir$|hydra\.job\.env_(set|copy)\b")
NAMES = re.compile(r"[\w.+/ -]+(,[\w.+/ -]+)*")  # also names of other programs, such as 'Multi Head Attention'
SELECTS = re.compile(r"[\w.+/-]+(,[\w.+/-]+)*")  # options by name; Hydra's functions such as glob(*) are not read here

# Hints for settings of other programs that have no single counterpart here.
HINTS = {
    **dict.fromkeys(
        ("pretrained", "load", "weights", "checkpoint", "model_name", "from_pretrained"),
        "resume=<run> resumes a training, and init_from=<model> starts a new one from trained weights",
    ),
    **dict.fromkeys(
        ("packing", "pack", "int8", "load_in_8bit", "quantization"),
        "weights are trained in float32 or bf16; mgpt-generate and mgpt-eval take packing=int8",
    ),
    **dict.fromkeys(("gpus", "devices", "num_gpus", "nproc_per_node"), "torchrun starts a process for each GPU"),
}


@dataclass(frozen=True)
class Override:
    """A setting and the value it is set to, as typed."""

    key: str
    value: str


def read_overrides(
    command: Command, arguments: Sequence[str], where: list[Path], sweep: bool = False, hydra: bool = False
) -> tuple[list[Override], list[str]]:
    """The settings of a command line, as typed and in Hydra's language.

    where: folders with yaml files
    sweep: whether several runs are started: commas separate values, and Hydra's launchers and sweepers can be set
    hydra: whether the command line is for a flag of Hydra, with which all of Hydra's settings pass

    Raises:
        ConfigError: a setting or an option does not exist, has no effect, or names code.
    """
    typed: list[Override] = []
    hydra_overrides: list[str] = []
    for argument in arguments:
        key, value = _key_and_value(command, argument)
        if re.match(r"hydra\b", key):
            if not hydra:
                _check_hydra(argument, key, sweep)
            hydra_overrides.append(argument)
            continue
        for override in _understood(command, key, value):
            _check_key(command, argument, override)
            if _unset(command, override):
                typed = [other for other in typed if other.key != override.key]
                hydra_overrides = [other for other in hydra_overrides if other.partition("=")[0] != override.key]
                continue
            typed.append(override)
            hydra_overrides.append(_in_hydra_grammar(command, override, where, sweep))
    for override in _implied(command, arguments, typed):
        typed.insert(0, override)
        hydra_overrides.insert(0, f"{override.key}={override.value}")
    return typed, hydra_overrides


def _key_and_value(command: Command, argument: str) -> tuple[str, str]:
    if argument.startswith("~"):
        raise ConfigError(f"{argument!r}: a setting cannot be removed; set it to {NONE}, or choose another option")
    match = ARGUMENT.fullmatch(argument)
    if match is None:
        example = "attention=gqa" if "attention" in command.groups() else "max_new_tokens=100"
        raise ConfigError(f"cannot read {printable(argument)!r}: settings are written key=value, such as {example}")
    if TARGET in match["key"]:
        raise ConfigError(f"{match['key']!r} cannot be set: no setting names code to run")
    return command.former_names.get(match["key"], match["key"]), match["value"]


def _check_hydra(argument: str, key: str, sweep: bool) -> None:
    """Raise a ConfigError for a setting of Hydra's that would have no effect."""
    if key == "hydra":
        raise ConfigError(
            f"{argument!r}: Hydra's own settings are given one by one, hydra.<setting>=...; see --hydra-help"
        )
    if not sweep and HYDRA_IN_SWEEPS.match(key):
        raise ConfigError(f"{argument!r} is for several runs: add --multirun")
    if not HYDRA_IN_SWEEPS.match(key):
        raise ConfigError(
            f"{argument!r} has no effect here: runs=<folder> and name=<name> choose the directory of a run; of Hydra's"
            " settings, those of hydra/launcher, hydra/sweeper, hydra.sweep.dir and hydra.job.env_set can be set"
        )


def _understood(command: Command, key: str, value: str) -> list[Override]:
    """The overrides for a key, which may be the name of a setting in another program.

    Raises:
        ConfigError: the setting of the other program has no exact counterpart.
    """
    our_names = [] if _exists(command, key) else our_settings(command, key)
    name = key.rpartition(".")[2]
    if our_names and SETTINGS[name].note:
        raise ConfigError(no_counterpart(name))
    return [Override(setting, _our_value(command, setting, value)) for setting in our_names or [key]]


def _exists(command: Command, key: str) -> bool:
    return key in command.choices() or bool(command.hints(key))


def _our_value(command: Command, key: str, value: str) -> str:
    if key in command.groups() and key not in command.tables and NAMES.fullmatch(value):
        known = command.schemas(key)
        return ",".join((*component_names(key, name, known), name)[0] for name in value.split(","))
    converted = our_value(key, value)
    return value if converted == value else str(converted)


def our_settings(command: Command, key: str) -> list[str]:
    """The counterparts of another program's setting ``key``, or of its last component within the same group."""
    group, _, name = key.rpartition(".")
    found = [_path(command, target) for target in SETTINGS[name].targets] if name in SETTINGS else []
    return [path for path in found if path is not None and (not group or path.rpartition(".")[0] == group)]


def _path(command: Command, target: str) -> str | None:
    """The path on the command line of a setting in the table of aliases; None if the command has no such setting."""
    if target.removesuffix(".name") in command.choices():
        return target.removesuffix(".name")
    settings = list(command.settings())
    nested = (setting for setting in settings if setting.endswith(f".{target}"))
    return target if target in settings else next(nested, None)


def _implied(command: Command, arguments: Sequence[str], typed: Sequence[Override]) -> list[Override]:
    """The options that settings of other programs imply, for groups in which no option is chosen."""
    chosen = {override.key for override in typed}
    implied: dict[str, str] = {}
    for argument in arguments:
        name = argument.lstrip("+").partition("=")[0]
        if name in SETTINGS and SETTINGS[name].implies and not _exists(command, name):
            group = SETTINGS[name].targets[0].partition(".")[0]
            if group in command.choices() and group not in chosen:
                implied[group] = SETTINGS[name].implies
    return [Override(group, option) for group, option in implied.items()]


def _check_key(command: Command, argument: str, override: Override) -> None:
    known = {*command.choices(), *names_of(command.plain)}
    if "." not in override.key and override.key not in known:
        raise ConfigError(unknown_setting(command, override.key, list(known)))
    group, _, setting = override.key.partition(".")
    if setting == "name" and group in command.slot_names():
        raise ConfigError(f"{printable(argument)!r}: choose the option itself, {group}={printable(override.value)}")


def _unset(command: Command, override: Override) -> bool:
    """Whether an override resets a group that starts without an option, as ``experiment=null`` does."""
    choice = command.choices().get(override.key)
    return choice is not None and (choice.default, override.value) == (NONE, NONE)


def _in_hydra_grammar(command: Command, override: Override, where: list[Path], sweep: bool) -> str:
    key, value = override.key, override.value
    if key in command.choices():
        _check_options(command, key, value, where, sweep)
        return f"{key}={re.sub(YAML_SUFFIX, '', value)}"
    hints = command.hints(key)
    if any(dict in (hint, get_origin(hint)) for hint in hints):  # an open mapping, which takes new keys
        return f"++{key}={_quoted_if_needed(key, QUOTED_KEY.sub(_without_quotes, value))}"
    if any(get_origin(hint) is list and _holds_text(hint) for hint in hints) and not _is_list(key, value):
        return f"{key}=[{quoted(value)}]"
    if any(get_origin(hint) is list and _holds_text(hint) for hint in hints):
        return f"{key}={_escapes_read(value)}"
    if not sweep and any(_holds_text(hint) for hint in hints) and not _is_value(key, value, hints):
        return f"{key}={quoted(value)}"
    if not sweep:
        _check_single(command, key, value)
    return f"{key}={_quoted_if_needed(key, value)}"


def _check_single(command: Command, key: str, value: str) -> None:
    """Raise a ConfigError for several values, which only --multirun takes."""
    try:
        several = OverridesParser.create().parse_override(f"{key}={value}").is_sweep_override()
    except HydraException:
        return
    if several:
        hint = "add --multirun to run them one after another" if command.slots else "give one"
        raise ConfigError(f"{key}={printable(value)} gives several values: {hint}")


def _check_options(command: Command, group: str, value: str, where: list[Path], sweep: bool) -> None:
    known = options(command, group, where)
    if not SELECTS.fullmatch(value):
        if sweep:
            return
        raise ConfigError(unknown(group, value, known, hint=missing_hint(group, value)))
    names = value.split(",")
    if len(names) > 1 and not sweep:
        raise ConfigError(f"{group}={value} names {len(names)} options: add --multirun to run them one after another")
    for name in names:
        if name not in known and name.removesuffix(".yaml") not in known and not _may_be_null(command, group, name):
            raise ConfigError(unknown(group, name, known, hint=missing_hint(group, name)))


def _may_be_null(command: Command, group: str, name: str) -> bool:
    return name == NONE and group not in command.groups()


def _holds_text(hint: Any) -> bool:
    return hint is Any or str in (hint, *get_args(hint))


def _is_value(key: str, value: str, hints: list[Any]) -> bool:
    """Whether a value of a setting that holds text is null or a list instead of text."""
    if value == NONE:
        return any(hint is Any or type(None) in get_args(hint) for hint in hints)
    return any(hint is Any or list in (hint, get_origin(hint)) for hint in hints) and _is_list(key, value)


def _without_quotes(key: re.Match[str]) -> str:
    return f"{key[2]}:"


def _is_list(key: str, value: str) -> bool:
    return value.startswith("[") and value.endswith("]") and _parses(key, value)


def _escapes_read(value: str) -> str:
    """Decode the escapes of YAML in the double-quoted texts of a list, such as "\\n"."""

    def read(match: re.Match[str]) -> str:
        try:
            text = yaml.safe_load(match[0]) if match[0].startswith('"') else None
        except yaml.YAMLError:  # not an escape of YAML: the text is taken literally
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
    """Text as a quoted string of Hydra's language, which Hydra reads back unchanged.

    Raises:
        ConfigError: the text is ``???``, which OmegaConf reads as a missing value even in quotes.
    """
    if text == MISSING:
        raise ConfigError(f"the text {text!r} cannot be given here, since it marks a missing value: give another one")
    return QuotedString(text=without_interpolation(text), quote=Quote.single).with_quotes()


def without_interpolation(text: str) -> str:
    """The text as OmegaConf reads it back unchanged: every interpolation in it is escaped."""
    return BACKSLASHES_BEFORE_INTERPOLATION.sub(lambda match: match[1] * 2 + r"\${", text)


def unknown_setting(command: Command, key: str, siblings: Sequence[str], arguments: Sequence[str] = ()) -> str:
    """The error message for a key that does not exist, with the closest existing one.

    siblings: existing settings of the same group
    arguments: the command line, in which the key may have the name of another program
    """
    parent, _, name = key.rpartition(".")
    if command.hints(key):
        with_setting = [option for option, schema in command.schemas(parent).items() if hasattr(schema.defaults, name)]
        typed = [argument.lstrip("+").partition("=")[0] for argument in arguments]
        foreign = [argument for argument in typed if argument != key and key in our_settings(command, argument)]
        shown = f"{foreign[0].rpartition('.')[2]!r} ({name})" if foreign and key not in typed else repr(name)
        return f"the chosen {parent} has no setting {shown}; use it with {parent}={' or '.join(with_setting)}"
    place = f" of {parent}" if parent else ""
    if name in HINTS and command.slots:
        return f"no setting {name!r}{place}; {HINTS[name]}"
    valid = sorted(sibling for sibling in siblings if sibling != "hydra")
    close = closest_setting(command, key, valid)
    hint = f" did you mean {close!r}?" if close else ""
    return f"no setting {printable(name)!r}{place};{hint} there are: {', '.join(valid)}"


def closest_setting(command: Command, key: str, siblings: Sequence[str] = ()) -> str | None:
    """The existing setting for an unknown key: the counterpart of another program's setting, or the closest name."""
    parent, _, name = key.rpartition(".")
    our_names = our_settings(command, key) or our_settings(command, name)
    beside = closest(name, siblings) if siblings else None
    if our_names or (parent and beside):
        return our_names[0] if our_names else beside
    leaves = {setting.rpartition(".")[2]: setting for setting in reversed([*command.settings(), *command.choices()])}
    close = closest(name, leaves)
    return leaves.get(name) or beside or (leaves[close] if close else None)


def jobs_to_try(command: Command, hydra_overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of the first job of a sweep, and of that job with each other value of each setting.

    Values that only a sweeper can expand are left out, and so are options of groups, which were checked before.
    """
    first: list[str] = []
    others: list[tuple[int, str]] = []
    for override in OverridesParser.create().parse_overrides(list(hydra_overrides)):
        if not override.is_sweep_override():
            first.append(str(override.input_line))
        elif override.value_type is not ValueType.GLOB_CHOICE_SWEEP:
            key = str(override.input_line).partition("=")[0]
            values = list(islice(override.sweep_string_iterator(), MAX_VALUES))
            first.append(f"{key}={values[0]}")
            if override.key_or_group not in command.choices():
                others += [(len(first) - 1, f"{key}={value}") for value in values[1:]]
    return [first, *([*first[:place], argument, *first[place + 1 :]] for place, argument in others)]
