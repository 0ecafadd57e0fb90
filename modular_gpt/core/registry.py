"""Registry of components: the only place where a name selects a class.

A component is a subclass with a name and a nested ``Config`` dataclass::

    class RMSNorm(Norm, name="rmsnorm"):
        @dataclass
        class Config(ComponentConfig):
            eps: float = 1e-5

Defining the class registers it. ``presets`` register further names of the same class with other default settings
(``mqa`` is multi-head attention with one key/value head): a name, a summary and the settings that differ.
"""

import importlib
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any, ClassVar, Self, TypeVar

from modular_gpt.core.aliases import component_names, counterpart, missing_hint, our_settings
from modular_gpt.core.errors import ConfigError, closest, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.validation import from_mapping, known_keywords

COMPONENTS = "modular_gpt.components"  # entry points: modules of other packages that register components
PLUGINS = "MODULAR_GPT_PLUGINS"  # environment variable: the user's modules with components, comma separated


@dataclass
class ComponentConfig:
    """Settings of one component; ``name`` is the registered name it was chosen by."""

    name: str = ""
    component: ClassVar[type["Component"]]

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Build the component with these settings; further arguments are passed to its constructor."""
        component: Any = self.component
        return component(self, *args, **kwargs)


C = TypeVar("C", bound=ComponentConfig)
T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    """Another name for a component with some settings changed."""

    summary: str
    settings: PlainDict


@dataclass(frozen=True)
class Entry:
    """One registered name: its class, its one-line summary, and the settings that differ from the defaults."""

    name: str
    component: type["Component"]
    summary: str
    settings: PlainDict = field(default_factory=dict)

    def default(self) -> ComponentConfig:
        return self.component.Config(**{"name": self.name, **self.settings})


_entries: dict[str, dict[str, Entry]] = {}


class Component:
    """Base class of all components that are selected by name; components of one ``slot`` replace each other."""

    slot: ClassVar[str] = ""
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    @classmethod
    def of(cls, config: ComponentConfig) -> type[Self]:
        """The component class of ``config``, a subclass of this class: ``Attention.of(config)`` is an attention."""
        assert issubclass(config.component, cls)
        return config.component

    def __init_subclass__(
        cls, slot: str = "", name: str = "", presets: Mapping[str, Preset] | None = None, **kwargs: object
    ) -> None:
        super().__init_subclass__(**kwargs)
        if slot:
            cls.slot = slot
            _entries.setdefault(slot, {})
        if not name:
            return
        if "Config" not in cls.__dict__:
            place = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Config"}  # for pickle
            cls.Config = dataclass(type("Config", (cls.Config,), place))
        cls.Config = known_keywords(name)(cls.Config)
        cls.Config.component = cls
        first_paragraph = (cls.__doc__ or name).strip().partition("\n\n")[0]
        _add(Entry(name, cls, " ".join(first_paragraph.split())))
        for preset_name, preset in (presets or {}).items():
            _add(Entry(preset_name, cls, preset.summary, preset.settings))


def _add(entry: Entry) -> None:
    known = _entries[entry.component.slot]
    old = known.get(entry.name)
    same = old is not None and _place(old) == _place(entry)
    if old is not None and not same:  # the same class again is a notebook cell run twice
        raise ConfigError(
            f"the {entry.component.slot} name {entry.name!r} is taken by {_place(old)}; "
            f"give {_place(entry)} another name"
        )
    known[entry.name] = entry


def _place(entry: Entry) -> str:
    return f"{entry.component.__module__}.{entry.component.__qualname__}"


@cache
def _load_plugins() -> None:
    """Import components of other packages: entry points, and modules listed in the environment variable.

    Neither a config nor a checkpoint can name a module, so reading one never runs foreign code.

    Raises:
        ConfigError: a listed module cannot be imported.
    """
    for point in entry_points(group=COMPONENTS):
        point.load()
    for module in filter(None, os.environ.get(PLUGINS, "").split(",")):
        try:
            importlib.import_module(module.strip())
        except ImportError as error:
            raise ConfigError(f"{PLUGINS} names {module.strip()!r}, which cannot be imported: {error}") from error


def import_folder(package: str, path: Iterable[str]) -> list[ModuleType]:
    """Import every module of a package of this project, so that its components register themselves.

    package, path: its ``__name__`` and ``__path__``
    """
    return [importlib.import_module(module.name) for module in pkgutil.walk_packages(path, f"{package}.")]


def slots() -> list[str]:
    """The names of all slots that components fill."""
    return list(_entries)


def entries(slot: str) -> dict[str, Entry]:
    """All registered names of a slot."""
    _load_plugins()
    return _entries[slot]


ComponentLike = str | PlainMapping | ComponentConfig  # a name, a mapping with a name, or a Config


def decode(slot: str, value: object) -> ComponentConfig:
    """Build the Config of a component from its name, a mapping with a ``name``, or a Config, which is checked.

    Raises:
        ConfigError: the name or a setting is unknown, or a value is of the wrong type.
    """
    if isinstance(value, ComponentConfig):
        if getattr(value, "component", None) is None or value.component.slot != slot:
            raise ConfigError(f"{slot} cannot be a {type(value).__qualname__}")
        given = {f.name: getattr(value, f.name) for f in fields(value)}
        names = [name for name, entry in entries(slot).items() if entry.component is value.component]
        if not value.name and not names:
            raise ConfigError(f"{slot}: the component of {type(value).__qualname__} is no longer registered")
        return from_mapping(type(value), {**given, "name": value.name or names[0]}, slot)
    settings: PlainDict = dict(value) if isinstance(value, Mapping) else {"name": value}
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{slot} must be a name, or a mapping with a name, got {value!r}")
    entry = lookup(slot, name)
    known = {setting.name for setting in fields(entry.component.Config)}
    settings = our_settings(slot, settings, known)
    for setting in settings:
        if setting not in known and (others := with_setting(slot, counterpart(slot, setting))):
            raise ConfigError(f"{slot}={entry.name} has no setting {setting!r}; use it with {' or '.join(others)}")
    return from_mapping(entry.component.Config, {"name": entry.name, **entry.settings, **settings}, slot)


def with_setting(slot: str, setting: str) -> list[str]:
    """The registered names of a slot whose components have a setting."""
    return [
        name
        for name, entry in entries(slot).items()
        if setting != "name" and any(field.name == setting for field in fields(entry.component.Config))
    ]


def lookup(slot: str, name: str) -> Entry:
    """The entry of a registered name, or of a foreign name of a component.

    Raises:
        ConfigError: the name is unknown.
    """
    known = entries(slot)
    names = component_names(slot, name, known)
    if not names:
        plugins = f" your own components are found through {PLUGINS}=<their module>;"
        hint = missing_hint(slot, name) or ("" if closest(name, known) else plugins)
        raise ConfigError(unknown(slot, name, known, hint=hint))
    return known[names[0]]


def encode(config: ComponentConfig) -> PlainDict:
    """Convert a Config to a dict with every setting; ``decode`` is the inverse."""
    return asdict(config)


def described(config: ComponentConfig) -> str:
    """Format the name and the settings that differ from the component's defaults: ``gqa, n_kv_heads=2``."""
    default = type(config)()
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"}
    changed = [f"{name}={value}" for name, value in values.items() if value != getattr(default, name)]
    return ", ".join([config.name, *changed])


def filled(config: C, **defaults: Any) -> C:
    """``config`` with its null settings replaced by ``defaults``; other settings are unchanged."""
    return replace(config, **{name: value for name, value in defaults.items() if getattr(config, name) is None})


def plain(value: T | None) -> T:
    """The value of a setting whose null has been resolved, see ``filled``; narrows its type."""
    assert value is not None, "a component reads settings whose nulls are resolved: take them from layer_configs"
    return value


def merge(slot: str, base: ComponentConfig, override: PlainMapping | str) -> ComponentConfig:
    """``base`` with some settings replaced; with another ``name``, that component's defaults with these settings.

    Raises:
        ConfigError: the override is neither a name nor a mapping, or has an unknown or invalid setting.
    """
    if not isinstance(override, (str, Mapping)):
        raise ConfigError(f"the {slot} of a variant must be a name or a mapping of settings, got {override!r}")
    override = {"name": override} if isinstance(override, str) else override
    name = override.get("name", base.name)
    if not isinstance(name, str) or lookup(slot, name).name != base.name:
        return decode(slot, override)
    changed = our_settings(slot, override, {setting.name for setting in fields(base)})
    return decode(slot, {**encode(base), **changed, "name": base.name})
