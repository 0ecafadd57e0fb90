"""Former names of dataclass fields: accepted by the constructor and readable as attributes, but not fields."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TypeVar

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping

T = TypeVar("T")


def former_names(**renamed: str) -> Callable[[type[T]], type[T]]:
    """Class decorator of a dataclass: ``@former_names(old="new")`` accepts ``old`` wherever ``new`` can be given."""

    def decorate(cls: type[T]) -> type[T]:
        constructor: Callable[..., None] = cls.__init__

        @wraps(constructor)
        def init(self: T, *args: object, **values: object) -> None:
            constructor(self, *args, **by_present_names(values, renamed))

        setattr(cls, "__init__", init)  # noqa: B010  a type checker wants no method assigned
        for old, new in renamed.items():
            setattr(cls, old, _alias(new))
        return cls

    return decorate


def by_present_names(values: PlainMapping, renamed: Mapping[str, str]) -> PlainDict:
    """Replace each key of ``values`` that is a former name; renamed: former name -> present name.

    A former name wins over a present one, because ``dataclasses.replace`` gives all present ones.

    Raises:
        ConfigError: two former names of the same setting have different values.
    """
    found = {key: value for key, value in values.items() if key not in renamed}
    for old in renamed.keys() & values.keys():
        new = renamed[old]
        others = [name for name in renamed if renamed[name] == new and name in values and values[name] != values[old]]
        if others:
            raise ConfigError(f"{old}={values[old]} and {others[0]}={values[others[0]]} are the same setting, {new}")
        found[new] = values[old]
    return found


def _alias(name: str) -> property:
    def get(self: object) -> object:
        return getattr(self, name)

    def put(self: object, value: object) -> None:
        setattr(self, name, value)

    return property(get, put, doc=f"Former name of ``{name}``.")
