"""Typed dataclasses from plain mappings: every key known, every value of its declared type, or one sentence."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from modular_gpt.core.errors import ConfigError, unknown

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build dataclass ``cls`` from ``values``; ``where`` names the place in messages.

    Raises:
        ConfigError: a key is no field of ``cls`` (with the closest one), or a value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, cls)) if field.init]
    for key in values:
        if key not in names:
            raise ConfigError(f"{where}: {unknown('setting', str(key), names)}")
    return cls(**{key: checked(value, hints[key], f"{where}.{key}") for key, value in values.items()})


def checked(value: Any, hint: Any, where: str) -> Any:
    """``value`` if it is a ``hint``; whole numbers become floats where a float is declared, numpy's become Python's."""
    value = _python_number(value)
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        base = typing.get_origin(option) or option
        if base is Any or (base is type(None) and value is None):
            return value
        if base is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if base is dict and isinstance(value, Mapping):
            return dict(value)
        if base is list and isinstance(value, (list, tuple)):
            return [_python_number(each) for each in value]
        if base is float and isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where} must be a finite number, got {value}")
        if isinstance(base, type) and isinstance(value, base) and not (base is int and isinstance(value, bool)):
            return value
    raise ConfigError(f"{where} must be {_spelled(options)}, got {value!r}")


def _python_number(value: Any) -> Any:
    """A number of numpy or a tensor of no dimensions as a number of Python; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _spelled(options: tuple[Any, ...]) -> str:
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null",
             dict: "a mapping"}  # fmt: skip
    names = [plain.get(typing.get_origin(option) or option) or _group(option) for option in options]
    return " or ".join(names)


def _group(option: Any) -> str:
    if not dataclasses.is_dataclass(option):
        return f"a {getattr(option, '__name__', str(option))}"
    return f"a group of settings ({', '.join(field.name for field in dataclasses.fields(option))})"


def one_of(value: str, valid: tuple[str, ...], setting: str) -> None:
    """Raise a ConfigError unless ``value`` is among the ``valid`` choices of ``setting``."""
    if value not in valid:
        raise ConfigError(f"{setting}: {unknown('choice', str(value), valid)}")


def fraction(where: str, **values: float | None) -> None:
    """Raise a ConfigError for the first value that is given and not in [0, 1)."""
    for name, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{where}.{name} must lie in [0, 1), got {value}")


def positive(where: str, **values: int | float | None) -> None:
    """Raise a ConfigError for the first value that is given and not above zero."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{where}.{name} must be above 0, got {value}")


def not_negative(where: str, **values: int | float | None) -> None:
    """Raise a ConfigError for the first value that is given and below zero."""
    for name, value in values.items():
        if value is not None and value < 0:
            raise ConfigError(f"{where}.{name} must be 0 or more, got {value}")
