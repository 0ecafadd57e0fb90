"""Families: yaml files that choose the components of a well-known architecture, whose sizes follow the model's.

A file of the group ``family`` chooses options for other groups and, under ``family:``, gives their settings. Each
mapping of settings is merged only where its option is still chosen, so that ``family=qwen3 attention=mla`` composes.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf

from modular_gpt.cli.composition.schema import Command
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping

FAMILY = "family"
SETTINGS = "settings_schema"  # Hydra's group with the settings that families give to other groups
MODEL = "model"  # no group: its settings belong to no option
GROUPS = ("attention", "ffn", "norm", "pos", "layers", MODEL)  # with an optional line each in conf/train.yaml
ABOUT = ("model_type", "used_by")  # beside settings: the type in transformers, and models of the family
STEP = 8  # widths and windows are multiples of it


class Given(NamedTuple):
    """The settings that a family gives to one group; name: of the family, and of the option they belong to."""

    group: str
    name: str
    settings: PlainDict


def family_files(where: list[Path]) -> dict[str, Path]:
    """The yaml files of families by option; the first folder that has one counts, as with Hydra."""
    found: dict[str, Path] = {}
    for folder in where:
        for path in sorted((folder / FAMILY).rglob("*.yaml")):
            found.setdefault(path.relative_to(folder / FAMILY).with_suffix("").as_posix(), path)
    return found


def given_settings(command: Command, where: list[Path]) -> Iterator[Given]:
    """The settings of every family, group by group.

    Raises:
        ConfigError: a file gives settings to something that is no group of the model's components.
    """
    for family, path in family_files(where).items():
        content = _content(path, path.stat().st_mtime_ns)
        options = chosen_options(content)
        for group, settings in (content.get(FAMILY) or {}).items():
            if group in ABOUT:
                continue
            if group not in GROUPS or not isinstance(settings, dict):
                raise ConfigError(
                    f"'{path}': family.{group} has to be a mapping with settings of one of {', '.join(GROUPS)}"
                )
            option = options.get(group, command.choices()[group].default) if group != MODEL else MODEL
            yield Given(group, f"{family}_{option}", settings)


def chosen_options(content: PlainMapping) -> dict[str, str]:
    """The options that the defaults list of a yaml file overrides, by group."""
    entries = [entry for entry in content.get("defaults") or [] if isinstance(entry, dict)]
    return {key.removeprefix("override /"): str(option) for entry in entries for key, option in entry.items()}


@cache
def _content(path: Path, changed: int) -> PlainDict:
    """A yaml file as it was at the time ``changed``."""
    content: PlainDict = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return content


def family_content(path: Path) -> PlainDict:
    """Everything in the yaml file of a family."""
    return _content(path, path.stat().st_mtime_ns)


def _size(name: str, root: DictConfig) -> int:
    sizes = root.model_size
    if name == "head_dim":
        return int(sizes.d_model // sizes.n_heads)
    if name not in sizes:
        raise ConfigError(f"a yaml file scales by {name!r}; there are: head_dim, {', '.join(map(str, sizes))}")
    return int(sizes[name])


def _scaled(name: str, ratio: str, least: int = STEP, *, _root_: DictConfig) -> int:
    """``${scaled:n_heads,8/32}``: a size of the model times a published ratio.

    A number of heads is rounded to a divisor of the model's, a rotated width to an even number, and widths and windows
    to multiples of 8 that are not below ``least``.
    """
    size = _size(name, _root_)
    value = float(size * Fraction(str(ratio)))
    if name == "n_heads":
        return max(count for count in range(1, size + 1) if size % count == 0 and count <= max(1, value))
    if name == "head_dim":
        return max(2, round(value / 2) * 2)
    return max(int(least), round(value / STEP) * STEP)


def _square_root(name: str, *, _root_: DictConfig) -> float:
    """``${square_root:d_model}``: the square root of a size of the model."""
    return sqrt(_size(name, _root_))


OmegaConf.register_new_resolver("scaled", _scaled, replace=True)
OmegaConf.register_new_resolver("square_root", _square_root, replace=True)
