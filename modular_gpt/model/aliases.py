"""Read a GPTConfig from settings of this package or of other code bases (core/aliases.py)."""

from collections.abc import Mapping
from types import SimpleNamespace

from modular_gpt.core.aliases import (
    COMPONENTS,
    MODEL_SETTINGS,
    TRAINING_SETTINGS,
    component_names,
    no_counterpart,
    our_value,
    put,
    vocabulary,
)
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, encode, entries, with_setting
from modular_gpt.model.config import SLOTS, GPTConfig

# The tables by their former names: foreign setting -> ours, and foreign name of a component -> ours.
WORDS = {name: alias.targets[0] for name, alias in MODEL_SETTINGS.items() if not alias.note}
NAMES = {slot: {name: our_names[0] for name, our_names in COMPONENTS[slot].items()} for slot in SLOTS}

Description = GPTConfig | PlainMapping | SimpleNamespace | None


def read_config(config: Description = None, **keywords: object) -> GPTConfig:
    """A GPTConfig from a GPTConfig, a mapping, a namespace, or keywords, in our settings or foreign ones.

    Raises:
        ConfigError: a setting is unknown, two settings contradict each other, or the model cannot work.
    """
    return read_description(config, **keywords)[0]


def read_description(config: Description = None, **keywords: object) -> tuple[GPTConfig, str]:
    """``read_config``, and a line about a default that was taken from the convention of the settings' names, or "".

    The conventions are those of docs/vocabularies.md.
    """
    if isinstance(config, GPTConfig):
        if keywords:
            raise ConfigError(f"give either a GPTConfig or keywords, not both ({', '.join(keywords)})")
        return config, ""
    if isinstance(config, SimpleNamespace):
        config = vars(config)
    if not isinstance(config, (Mapping, type(None))):
        raise ConfigError(f"a model is described by a GPTConfig, a dict, a SimpleNamespace or keywords, not {config!r}")
    settings = {**(config or {}), **keywords}
    values, assumed = translate(settings), ""
    convention = vocabulary(settings)
    if convention is not None and "pos" not in values:
        values["pos"] = convention.pos
        names = " ".join(convention.settings)
        assumed = f"pos: {convention.pos}, as in models described by {names} ({convention.origin})"
    return GPTConfig.from_dict(values), assumed


def translate(settings: PlainMapping) -> PlainDict:
    """Translate foreign settings to ours; ours pass unchanged.

    Raises:
        ConfigError: a setting is unknown or has no exact counterpart, or two of them contradict each other.
    """
    values: PlainDict = {}
    origin: dict[str, str] = {}
    components: dict[str, _Component] = {}
    our_names = ["format", *GPTConfig.__dataclass_fields__]
    for name, value in settings.items():
        if name not in MODEL_SETTINGS and name not in our_names:
            raise ConfigError(_unknown(str(name), our_names))
        alias = None if name in our_names else MODEL_SETTINGS[name]
        if alias is not None and alias.note:
            raise ConfigError(no_counterpart(name))
        for target in (name,) if alias is None else alias.targets:
            slot, _, setting = target.partition(".")
            if slot in SLOTS:
                if setting and value is None:
                    continue
                component = components.setdefault(slot, _Component(slot))
                component.add(setting, value, name)
                component.implied = component.implied or (alias.implies if alias is not None else "")
            else:
                put(values, origin, target, our_value(target, value), name)
    return {**values, **{slot: component.decoded() for slot, component in components.items()}}


class _Component:
    """The component of one slot, as settings describe it one by one: its possible names, and its settings."""

    def __init__(self, slot: str) -> None:
        self.slot = slot
        self.implied = ""
        self.names: tuple[str, ...] = ()
        self.chosen_by = ""
        self.values: PlainDict = {}
        self.origin: dict[str, str] = {}

    def add(self, setting: str, value: object, name: str) -> None:
        """Add a setting of the component, or with an empty ``setting`` the component itself; name: the user's name."""
        if setting == "name":
            self.choose(value, name)
        elif setting:
            put(self.values, self.origin, setting, our_value(f"{self.slot}.{setting}", value), name)
        elif isinstance(value, str):
            self.choose(value, name)
        else:
            given = value if isinstance(value, Mapping) else encode(decode(self.slot, value))
            for key, inner in given.items():
                self.add(str(key), inner, name if key == "name" else f"{name}.{key}")

    def choose(self, value: object, name: str) -> None:
        """Restrict the component to the names that ``value`` can mean."""
        known = entries(self.slot)
        names = component_names(self.slot, value, known) if isinstance(value, str) else ()
        if not names:
            decode(self.slot, value if isinstance(value, str) else {"name": value})  # raises the error
        common = tuple(candidate for candidate in self.names if candidate in names)
        if self.names and not common:
            raise ConfigError(f"{name}={value!r} contradicts {self.chosen_by}: both choose the {self.slot}; give one")
        self.names, self.chosen_by = common or names, f"{name}={value!r}"

    def decoded(self) -> ComponentConfig:
        default = str(GPTConfig.__dataclass_fields__[self.slot].default)
        name = self.names[0] if self.names else self.implied or default
        self._check_foreign(name)
        return decode(self.slot, {**self.values, "name": name})

    def _check_foreign(self, name: str) -> None:
        """Raise a ConfigError, with the user's name of the setting, for a foreign one that the component lacks."""
        for setting, given in self.origin.items():
            supporting = with_setting(self.slot, setting)
            if given != f"{self.slot}.{setting}" and supporting and name not in supporting:
                translated = "" if given.rpartition(".")[2] == setting else f" ({setting})"
                raise ConfigError(
                    f"{self.slot}={name} has no setting {given}{translated}; use it with {' or '.join(supporting)}"
                )


def _unknown(name: str, our_names: list[str]) -> str:
    if name in TRAINING_SETTINGS:
        return f"{name} is a setting of a training ({TRAINING_SETTINGS[name].targets[0]}), not of a model"
    return unknown("setting", name, our_names, also=MODEL_SETTINGS)
