"""Build typed dataclasses from plain mappings, and check keys, types and ranges of settings."""

import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping

T = TypeVar("T")
WEIGHT_TYPES = ("float32", "bf16")  # data types of saved and loaded weights, by name
MAX_NAME, MAX_PATH = 255, 4095  # bytes of a file's name and of a path, on all common file systems
MAX_FLOAT32 = 3.4028234663852886e38  # beyond it, a setting is infinite in the arithmetic of models


def from_mapping(cls: type[T], values: PlainMapping, where: str) -> T:
    """Build the dataclass ``cls`` from ``values``; where: the name of the place in messages, or "".

    Raises:
        ConfigError: a key is not a field of ``cls`` (the message has the closest one), or a value has the wrong type.
    """
    return cls(**checked_fields(cls, values, where))


def validated(where: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: the constructor of a dataclass checks its arguments as ``from_mapping`` does.

    Raises (the constructor):
        ConfigError: a keyword is not a field (the message has the closest one), or a value has the wrong type.
    """

    def decorate(cls: type[T]) -> type[T]:
        original = cls.__init__

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **keywords: Any) -> None:
            names = [field.name for field in dataclasses.fields(self) if field.init]
            original(self, **checked_fields(type(self), {**dict(zip(names, args, strict=False)), **keywords}, where))

        setattr(cls, "__init__", __init__)  # noqa: B010  mypy knows __init__ as a method that is never replaced
        return cls

    return decorate


def known_keywords(place: str, elsewhere: Mapping[str, str] | None = None) -> Callable[[type[T]], type[T]]:
    """Class decorator: the constructor of a dataclass raises a ConfigError for a keyword that is no field.

    place: the name of the dataclass in messages
    elsewhere: names of settings in other programs -> the names here

    Raises (the constructor):
        ConfigError: a keyword is not a field; the message has the closest one.
    """

    def decorate(cls: type[T]) -> type[T]:
        original = cls.__init__

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, **keywords: Any) -> None:
            names = [field.name for field in dataclasses.fields(self) if field.init]
            strange = next((name for name in keywords if name not in names), None)
            if strange is not None and elsewhere and strange in elsewhere:
                raise ConfigError(f"{place}: no setting {strange!r}; it is {elsewhere[strange]} here")
            if strange is not None:
                raise ConfigError(f"{place}: {unknown('setting', strange, names)}")
            original(self, *args, **keywords)

        setattr(cls, "__init__", __init__)  # noqa: B010  mypy knows __init__ as a method that is never replaced
        return cls

    return decorate


def checked_fields(cls: type, values: PlainMapping, where: str) -> PlainDict:
    """Check ``values`` against the declared types of the fields of ``cls``; mappings become nested dataclasses.

    Raises:
        ConfigError: a key is not a field, or a value has the wrong type.
    """
    hints, names = _fields(cls)
    for key in values:
        if key not in names:
            raise ConfigError(f"{where}: {unknown('setting', str(key), names)}".removeprefix(": "))
    return {
        key: from_mapping(hints[key], value, key)
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping)
        else checked(value, hints[key], f"{where}.{key}".removeprefix("."))
        for key, value in values.items()
    }


@functools.cache
def _fields(cls: type) -> tuple[PlainDict, list[str]]:
    """The declared types and the names of a dataclass's fields."""
    return typing.get_type_hints(cls), [field.name for field in dataclasses.fields(typing.cast(Any, cls)) if field.init]


def checked(value: Any, hint: Any, where: str) -> Any:
    """Check that ``value`` has the declared type ``hint`` and return it.

    A whole number becomes a float where a float is declared; numbers of numpy and 0-dim tensors become Python numbers;
    paths become text where text is declared.

    Raises:
        ConfigError: the value has another type, is not finite, or is an integer of more than 64 bits.
    """
    value = _python_number(value)
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    for option in options:
        base = typing.get_origin(option) or option
        if base is Any or (base is type(None) and value is None):
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if base in (int, float) and whole and not -(2**63) <= value < 2**64:
            raise ConfigError(f"{where} must have at most 64 bits, got {shown(value)}")
        if base is float and whole:
            return float(value)
        if base is dict and isinstance(value, Mapping):
            return dict(value)
        if base is str and isinstance(value, os.PathLike):
            return os.fspath(value)
        if base is list and isinstance(value, (list, tuple)):
            return [_python_number(item) for item in value]
        if base is float and isinstance(value, float) and not abs(value) <= MAX_FLOAT32:
            limit = f", at most {MAX_FLOAT32:.1e}" if math.isfinite(value) else ""
            raise ConfigError(f"{where} must be a finite number{limit}, got {value}")
        if isinstance(base, type) and isinstance(value, base) and (base is not int or whole):
            return value
    raise ConfigError(f"{where} must be {_spelled(options)}, got {shown(value)}")


def _python_number(value: Any) -> Any:
    """Convert a number of numpy or a 0-dim tensor to a Python number; any other value is returned unchanged."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


def _spelled(options: tuple[object, ...]) -> str:
    plain: dict[object, str] = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        dict: "a mapping",
        type(None): "null",
    }
    names = [plain.get(typing.get_origin(option) or option) or _group(option) for option in options]
    return " or ".join(names)


def _group(option: object) -> str:
    if not dataclasses.is_dataclass(option):
        return f"a {getattr(option, '__name__', str(option))}"
    return f"a group of settings ({', '.join(field.name for field in dataclasses.fields(option))})"


def expand_home(settings: object, *names: str) -> None:
    """Expand ``~`` in the settings ``names``, each a path or a list of paths, in place; Path objects become text."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, (list, tuple)):
            setattr(settings, name, [_expanded(name, path) for path in value])
        else:
            setattr(settings, name, _expanded(name, value))


def _expanded(setting: str, path: Any) -> Any:
    return check_path(os.path.expanduser(path), setting) if isinstance(path, (str, os.PathLike)) else path


def check_path(path: str, setting: str) -> str:
    """Return ``path``. Raises a ConfigError for a text that no file system can have as a path."""
    if "\0" in path:
        raise ConfigError(f"{setting} must be a path, which cannot hold a NUL character, got {shown(path)}")
    longest = max(len(os.fsencode(name)) for name in path.split(os.sep))
    if longest > MAX_NAME or len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(
            f"{setting} must be a path of at most {MAX_PATH} bytes, {MAX_NAME} for each name in it, got {shown(path)}"
        )
    return path


def at_most(where: str, largest: Mapping[str, int], settings: object) -> None:
    """Raise a ConfigError for the first setting above its limit in ``largest``."""
    for name, limit in largest.items():
        value = getattr(settings, name)
        if value is not None and value > limit:
            raise ConfigError(f"{where}.{name} must be at most {limit:,}, got {shown(value)}")


def shown(value: object) -> str:
    """Format a value for a message: a very large number by its number of digits, long text cut off."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1} digits"
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}..."


@contextmanager
def size_errors(what: str) -> Iterator[None]:
    """Context manager: turn errors of sizes beyond the available memory into a ConfigError about ``what``.

    PyTorch raises them as RuntimeError or TypeError (also on the meta device, where a size overflows), Python as
    MemoryError or OverflowError.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OverflowError, TypeError) as error:
        first_line = str(error).partition("\n")[0].lower()
        if isinstance(error, (RuntimeError, TypeError)) and not any(sign in first_line for sign in _SIZE_SIGNS):
            raise
        raise ConfigError(f"{what} is beyond the memory of this machine; make its sizes smaller") from error


_SIZE_SIGNS = ("overflow", "memory", "invalid size", "too large", "out of range")


def one_of(value: str, valid: tuple[str, ...], setting: str) -> None:
    """Raise a ConfigError unless ``value`` is among the ``valid`` choices of ``setting``."""
    if value not in valid:
        raise ConfigError(f"{setting}: {unknown('choice', str(value), valid)}")


def fraction(where: str, **values: float | None) -> None:
    """Raise a ConfigError for the first value that is not None and not in [0, 1)."""
    for name, value in values.items():
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{where}.{name} must lie in [0, 1), got {value}")


def positive(where: str, **values: int | float | None) -> None:
    """Raise a ConfigError for the first value that is not None and not above zero."""
    for name, value in values.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{where}.{name} must be above 0, got {value}")


def not_negative(where: str, **values: int | float | None) -> None:
    """Raise a ConfigError for the first value that is not None and below zero."""
    for name, value in values.items():
        if value is not None and value < 0:
            raise ConfigError(f"{where}.{name} must be 0 or more, got {value}")


_TIME = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS = (86400.0, 3600.0, 60.0, 1.0)


def seconds_of(value: float | str, setting: str) -> float:
    """A time in seconds, from a number of seconds or a text such as ``90m``, ``1h30m`` or ``2d``.

    Raises:
        ConfigError: ``value`` is neither, or not above 0.
    """
    text = str(value).strip().lower()
    found = _TIME.fullmatch(text)
    if found is not None and any(found.groups()):
        out = sum(float(number) * unit for number, unit in zip(found.groups(), _SECONDS, strict=True) if number)
    else:
        try:
            out = float(text)
        except ValueError:
            out = 0.0
    if not 0 < out < math.inf:
        raise ConfigError(
            f"{setting} must be a time above 0, seconds or a text such as 90m or 1h30m, got {shown(value)}"
        )
    return out
