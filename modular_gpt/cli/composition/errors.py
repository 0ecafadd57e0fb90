"""Errors of Hydra and OmegaConf as ConfigErrors of one sentence with a remedy."""

import re
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError  # type: ignore[import-untyped]

from modular_gpt.cli.composition.overrides import unknown_setting
from modular_gpt.cli.composition.schema import Command, options
from modular_gpt.core.errors import ConfigError, first_line, printable, unknown
from modular_gpt.core.validation import checked

TYPES = {int: "whole numbers", float: "numbers", str: "texts"}  # of the keys and values of mappings
PLUGIN_GROUPS = ("hydra/launcher/", "hydra/sweeper/")


@contextmanager
def explained(command: Command, where: list[Path], arguments: Sequence[str] = ()) -> Iterator[None]:
    """Context manager: raise a ConfigError for the errors of Hydra and OmegaConf inside.

    arguments: the command line, as typed

    Raises:
        ConfigError: a config cannot be composed; the message has the setting and the remedy.
    """
    try:
        yield
    except OverflowError as error:  # OmegaConf converts whole numbers to floats
        key = re.search(r"full_key: (\S+)", str(error))
        raise ConfigError(
            f"{key[1] if key else 'a number'} must be a finite number, got one of too many digits"
        ) from error
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(_sentence(command, where, arguments, error)) from error


def _sentence(command: Command, where: list[Path], arguments: Sequence[str], error: Exception) -> str:
    """The message for an error of Hydra, OmegaConf or YAML."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        if error.missing_cfg_file.startswith(PLUGIN_GROUPS):
            return _missing_plugin(*error.missing_cfg_file.split("/")[1:3])
        group, _, name = error.missing_cfg_file.partition("/")
        known = options(command, group, where) if group in command.choices() else {}
        return unknown(group, name, known) if known else first_line(error)
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__ or error.__context__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        return _in_file(error) + unknown_setting(command, cause.full_key, _siblings(cause), arguments)
    if mapping := _mapping_of(command, arguments, error, cause):
        return mapping
    if isinstance(cause, ValidationError) and cause.full_key:
        return _in_file(error) + _wrong_value(cause)
    if isinstance(error, OverrideParseException):
        return f"cannot read {error.override!r}: {first_line(error)}"
    reason = f" ({first_line(cause)})" if isinstance(cause, OmegaConfBaseException) and cause is not error else ""
    return first_line(error) + reason


def _missing_plugin(plugin_type: str, name: str) -> str:
    """The message for a launcher or sweeper of Hydra that is not installed."""
    package = f"hydra-{name.removesuffix('_local').removesuffix('_slurm')}-{plugin_type}"
    return f"no {plugin_type} {name!r} of Hydra's is installed here; if there is one, install it: pip install {package}"


def _siblings(cause: OmegaConfBaseException) -> list[str]:
    return [str(key) for key in cause.parent_node] if isinstance(cause.parent_node, DictConfig) else []


def _wrong_value(cause: ValidationError) -> str:
    """The message with which ``checked`` refuses a value of the wrong type."""
    node_type = OmegaConf.get_type(cause.parent_node) if isinstance(cause.parent_node, DictConfig) else None
    try:
        checked(cause.value, typing.get_type_hints(node_type)[str(cause.key)], str(cause.full_key))
    except ConfigError as error:
        return str(error)
    except (KeyError, TypeError):
        pass  # no dataclass declares its type
    return f"{cause.full_key}: {first_line(cause)}"


def _mapping_of(command: Command, arguments: Sequence[str], error: Exception, cause: BaseException | None) -> str:
    """The sentence for a key or value of a mapping that has another type than declared; empty for other errors."""
    place = str(cause.full_key) if isinstance(cause, ValidationError) else ""
    for argument in arguments:
        key, _, value = argument.lstrip("+").partition("=")
        key = command.former_names.get(key, key)
        merging = value.startswith("{") and first_line(error).startswith(f"Error merging override ++{key}=")
        if not (merging or place.startswith(f"{key}.")):
            continue
        for hint in command.hints(key):
            types = [TYPES.get(inner) for inner in typing.get_args(hint)] if typing.get_origin(hint) is dict else []
            if len(types) == 2 and all(types):
                return f"{key}={printable(value)}: its keys must be {types[0]}, its values {types[1]}"
    return ""


def _in_file(error: Exception) -> str:
    """The beginning of a message about an error in a yaml file, such as "In 'attention/mine': "; else ""."""
    line = first_line(error)
    return line[: line.index("': ") + 3] if line.startswith("In '") and "': " in line else ""
