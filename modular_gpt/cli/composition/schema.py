"""The settings of a command line: groups of options, the dataclass of each option, and plain settings.

Groups are the slots of the registry and the few below. An option is a yaml file in a group's folder, or a
registered name without one. Defaults live in the dataclasses; a yaml holds what differs.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.setting_docs import plain_text
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import entries, slots

SCHEMA = "_schema"  # `defaults: [gqa_schema]` in a yaml includes the settings of gqa with their types
TARGET = "_target_"  # the key by which yaml files of Hydra name code, which settings here never do
CHOICE = re.compile(r"\s*- (?P<group>\w+): (?P<default>[\w./-]+)\s*(# (?P<about>.*))?")  # a line of a defaults list
CONFIGS = "modular_gpt.configs"  # entry points: packages whose folder holds more yaml files


def _block_parameters(size: PlainDict) -> float:
    """A number that is proportional to the parameters in the blocks of a model size, approximately."""
    return float(size["n_layers"] * size["d_model"] ** 2)


SIZES: dict[str, Callable[[PlainDict], float]] = {
    "model_size": _block_parameters
}  # by group: the size that the settings of an option describe


@dataclass(frozen=True)
class Schema:
    """An option: a line about it, and the dataclass of its settings with their defaults."""

    summary: str
    defaults: Any


@dataclass(frozen=True)
class Choice:
    """A group in the defaults list of a command: its default option and its description."""

    default: str
    about: str


@dataclass(frozen=True)
class Command:
    """A command and its settings.

    name: of the command and of its yaml; plain: dataclass of the settings outside groups
    tables: groups that are no slots of the registry, with the dataclass of their options
    slots: whether the slots of the registry are groups too
    former_names: of plain settings, with the present ones; accepted on the command line and in the command's yaml
    sizes: for groups whose yaml files have an order, the size that the settings of a file describe
    """

    name: str
    plain: type
    tables: dict[str, type] = dataclasses.field(default_factory=dict)
    slots: bool = False
    former_names: dict[str, str] = dataclasses.field(default_factory=dict)
    sizes: dict[str, Callable[[PlainDict], float]] = dataclasses.field(default_factory=dict)

    def schemas(self, group: str) -> dict[str, Schema]:
        """The schemas of a group, by name."""
        if group in self.tables:
            return {group: Schema("", self.tables[group]())}
        return {name: Schema(entry.summary, entry.default()) for name, entry in entries(group).items()}

    def groups(self) -> list[str]:
        """The names of all groups that have a schema."""
        return [*self.slot_names(), *self.tables]

    def slot_names(self) -> list[str]:
        """The slots of the registry that are groups, by name."""
        return sorted(slots()) if self.slots else []

    def components(self) -> list[tuple[str, Any]]:
        """Everything from which the schemas of the slots are made; equal lists mean equal schemas."""
        return [(slot, list(entries(slot).items())) for slot in self.slot_names()]

    def choices(self) -> "dict[str, Choice]":
        """The groups that choose options, in the order of the command's yaml; some (experiments) have no schema."""
        lines = (conf_dir() / f"{self.name}.yaml").read_text(encoding="utf-8").splitlines()
        found = (match for line in lines if (match := CHOICE.fullmatch(line)))
        return {match["group"]: Choice(match["default"], match["about"] or "") for match in found}

    def order(self, group: str, path: Path) -> tuple[float, str]:
        """The sort key of a yaml file among the options of a group: its size, if the group has one, then its path."""
        size = self.sizes.get(group)
        if size is None:
            return 0.0, path.as_posix()
        return size({**dataclasses.asdict(self.tables[group]()), **read_yaml(path)}), path.as_posix()

    def starts(self, conf: Path) -> Any:
        """The settings outside groups, with the values of the command's yaml file."""
        given = read_yaml(conf / f"{self.name}.yaml")
        return _filled(self.plain, {name: value for name, value in given.items() if name in names_of(self.plain)})

    def hints(self, key: str) -> list[Any]:
        """The declared types of a dotted setting, over all options that have it."""
        first, *rest = key.split(".")
        if first in self.groups():
            roots: list[Any] = [type(schema.defaults) for schema in self.schemas(first).values()]
        else:
            roots, rest = [self.plain], [first, *rest]
        for name in rest:
            known = [typing.get_type_hints(root) for root in roots if dataclasses.is_dataclass(root)]
            mappings = [root for root in roots if dict in (root, typing.get_origin(root))]
            roots = [hints[name] for hints in known if name in hints] or mappings
        return roots

    def settings(self) -> Iterator[str]:
        """Yield every setting by its dotted name."""
        yield from _dotted(self.plain, "")
        for group in self.groups():
            for schema in self.schemas(group).values():
                yield from _dotted(type(schema.defaults), f"{group}.")


def _dotted(cls: Any, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _dotted(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def fields_of(cls: type, names: Iterable[str]) -> list[tuple[str, Any, Any]]:
    """Some of a dataclass's fields with their types and defaults, for ``make_dataclass``."""
    hints, chosen = typing.get_type_hints(cls), set(names)
    return [(field.name, hints[field.name], _default(field)) for field in fields(cls) if field.name in chosen]


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory)
    return field.default


def described(*classes: type, first: str = "") -> dict[str, str]:
    """A namespace for ``make_dataclass`` with the docstrings of the classes whose fields were taken."""
    documentation = [first, *(inspect.cleandoc(cls.__doc__ or "") for cls in classes)]
    return {"__doc__": "\n\n".join(documentation)}


def names_of(cls: type) -> set[str]:
    """The names of a dataclass's fields."""
    return {field.name for field in fields(cls)}


def folders(config_dir: str | None = None) -> list[Path]:
    """The folders that are searched for yaml files: the package's own, those of other packages, and ``config_dir``.

    Raises:
        ConfigError: a folder does not exist.
    """
    found = [conf_dir(), *_installed()]
    if config_dir is not None:
        found.append(Path(config_dir).expanduser().absolute())
        if not found[-1].is_dir():
            raise ConfigError(f"--config-dir {config_dir!r} is not a folder (looked for {found[-1]})")
    return found


@cache
def _installed() -> list[Path]:
    """The folders of the packages in the entry-point group ``CONFIGS``.

    Raises:
        ConfigError: an entry point names no package.
    """
    found: list[Path] = []
    for point in entry_points(group=CONFIGS):
        try:
            package = find_spec(point.value)
        except ImportError:
            package = None
        if package is None or not package.submodule_search_locations:
            raise ConfigError(f"the entry point {point.name!r} of {CONFIGS} names {point.value!r}, which is no package")
        found += [Path(place) for place in package.submodule_search_locations]
    return found


def options(command: Command, group: str, where: list[Path]) -> dict[str, str]:
    """The options of a group with a line about each: registered ones, then those of yaml files alone."""
    files: dict[str, Path] = {}
    for folder in where:
        for path in sorted((folder / group).rglob("*.yaml")):
            files.setdefault(path.relative_to(folder / group).with_suffix("").as_posix(), path)
    known = command.schemas(group) if group in command.groups() and group not in command.tables else {}
    names = [*known, *sorted(files.keys() - known.keys(), key=lambda name: command.order(group, files[name]))]
    lines = {name: headline(files[name]) if name in files else "" for name in names}
    return {name: plain_text(lines[name] or known[name].summary) if name in known else lines[name] for name in names}


def _filled(cls: Any, values: PlainDict) -> Any:
    """An instance of a dataclass, and of those nested in it, with some values given."""
    hints = typing.get_type_hints(cls)
    nested = {name: hints[name] for name in values if dataclasses.is_dataclass(hints[name])}
    return cls(**{**values, **{name: _filled(inner, values[name]) for name, inner in nested.items()}})


def yaml_file(where: list[Path], group: str, option: str) -> Path | None:
    """The yaml file of an option, or None where it has none."""
    found = (folder / group / f"{option}.yaml" for folder in where)
    return next((path for path in found if path.is_file()), None)


def read_yaml(path: Path) -> PlainDict:
    """The values in a yaml file, without its defaults list."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in ("defaults", "hydra")} if values else {}


def headline(path: Path) -> str:
    """The first comment line of a yaml file; empty if there is none."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#") and not line.startswith("# @"):
                return line.lstrip("# ").strip()
    return ""
