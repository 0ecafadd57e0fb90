"""Composition by Hydra: store the schemas, add the folders with yaml files, and compose a config from overrides."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir, version
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from modular_gpt.cli.composition.families import FAMILY, SETTINGS, family_files, given_settings
from modular_gpt.cli.composition.schema import SCHEMA, TARGET, Command
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict

# Hydra 1.3 warns unless a version is given whose behaviour it should have; 1.4 warns if one is given.
HYDRA: PlainDict = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
PLUGINS = ("hydra.", "hydra_plugins.", "optuna.")  # packages of Hydra's launchers and sweepers

_last_prepared: Any = None  # sources of the configs in Hydra's store, of which there is one in a process
# By command, choices and yaml files: the sources of a composed config, and the config.
_composed: dict[tuple[object, ...], tuple[tuple[object, ...], DictConfig]] = {}
_MAX_COMPOSED = 100


class _Folders(SearchPathPlugin):
    """Appends the folders of other packages and of the user to the package's own."""

    extra: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.extra:
            search_path.append(provider="modular_gpt", path=f"file://{folder}")


def prepare(command: Command, where: list[Path]) -> None:
    """Put the schemas of a command into Hydra's store; ``where``: folders with yaml files, the package's own first.

    Nothing is done if components, folders and their yaml files are the same as in the last call.
    """
    global _last_prepared
    sources = _sources(command, where)
    if sources != _last_prepared:
        _last_prepared = None
        _store_all(command, _with_yaml(command, where))
        _store_families(command, where)
        _Folders.extra = tuple(where[1:])
        Plugins.instance().register(_Folders)
        _last_prepared = sources


def _with_yaml(command: Command, where: list[Path]) -> dict[str, list[str]]:
    """The names of the yaml files of each group."""
    return {group: [path.stem for folder in where for path in sorted((folder / group).glob("*.yaml"))]
            for group in command.groups()}  # fmt: skip


def _sources(command: Command, where: list[Path]) -> tuple[object, ...]:
    """The values on which a composition depends besides choices and the content of yaml files."""
    families = [(path, path.stat().st_mtime_ns) for path in family_files(where).values()] if command.slots else []
    return command.name, list(where), _with_yaml(command, where), command.components(), families


def _store_all(command: Command, with_yaml: Mapping[str, Sequence[str]]) -> None:
    with_groups = OmegaConf.merge(OmegaConf.structured(command.plain), {})
    OmegaConf.set_struct(with_groups, False)
    for group in command.choices():
        OmegaConf.update(with_groups, group, MISSING if group in command.groups() else None, force_add=True)
    for name in command.former_names:
        OmegaConf.update(with_groups, name, None, force_add=True)
    _store(None, f"{command.name}{SCHEMA}", with_groups)
    for group in command.groups():
        for name, schema in command.schemas(group).items():
            _store(group, f"{name}{SCHEMA}", schema.defaults)
            if group not in command.tables:
                _store(group, name, None if name in with_yaml[group] else schema.defaults)


def _store_families(command: Command, where: list[Path]) -> None:
    ConfigStore.instance().repo.pop(SETTINGS, None)
    for given in given_settings(command, where) if command.slots else ():
        _store(f"{SETTINGS}/{given.group}", given.name, given.settings)


def _store(group: str | None, name: str, node: Any) -> None:
    """Put a config into Hydra's store in place of an earlier one; None removes that one."""
    store = ConfigStore.instance()
    folder = store.repo
    for level in group.split("/") if group else ():
        folder = folder.get(level, {})
    folder.pop(f"{name}.yaml", None)
    if node is not None:
        store.store(group=group, name=name, node=node)


@contextmanager
def _separate_hydra(conf: Path) -> Iterator[None]:
    """Context manager: initialise Hydra on the package's yaml files, and restore a notebook's Hydra afterwards."""
    before, base = GlobalHydra.instance().hydra, version.getbase()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), **HYDRA):
            yield
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = before
        if before is not None:
            version.setbase(str(base))


def composed(command: Command, hydra_overrides: Sequence[str], where: list[Path]) -> DictConfig:
    """Compose a command's yaml and overrides, which are in Hydra's language as ``read_overrides`` returns them.

    Raises:
        HydraException, OmegaConfBaseException: see ``errors.explained``.
    """
    chosen, settings = [], []
    for text, override in zip(
        hydra_overrides, OverridesParser.create().parse_overrides(list(hydra_overrides)), strict=True
    ):
        # Hydra takes a setting for the choice of an option where another command has a group of that name.
        foreign = _is_foreign_group(command, text.partition("=")[0], where)
        if foreign or _is_plain_setting(command, override):
            settings.append(override)
        else:
            chosen.append(text)
    config = copy.deepcopy(_with_choices(command, chosen, where))
    for setting in settings:
        try:
            OmegaConf.update(config, setting.key_or_group, setting.value())
        except OmegaConfBaseException as error:
            raise ConfigCompositionException(f"Error merging override {setting.input_line}") from error
    _refuse_code(config)
    with open_dict(config):
        for old, new in command.former_names.items():
            value = config.pop(old)
            if value is not None:  # from a yaml file
                config[new] = value
    return config


def _with_choices(command: Command, chosen: list[str], where: list[Path]) -> DictConfig:
    """The config that Hydra composes of the chosen options; cached, since composing takes a tenth of a second.

    After a change of a yaml file, it is composed anew.
    """
    groups = [folder / group for folder in where for group in (*command.choices(), "hydra")]
    paths = [path for group in groups for path in group.rglob("*.yaml")]
    paths += [path for folder in where for path in folder.glob("*.yaml")]
    key = (command.name, *chosen, *((path, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(paths)))
    sources = _sources(command, where)
    if key not in _composed or _composed[key][0] != sources:
        prepare(command, where)
        with _separate_hydra(where[0]):
            config = compose(command.name, chosen, return_hydra_config=True)
        _refuse_code(config)
        with open_dict(config):
            del config["hydra"]
            config.pop(FAMILY, None)  # its settings have been merged
        if len(_composed) >= _MAX_COMPOSED:
            _composed.clear()
        _composed[key] = sources, config
    return _composed[key][1]


def _is_plain_setting(command: Command, override: Override) -> bool:
    """Whether an override sets a setting to one value, and neither chooses an option nor is a setting of Hydra."""
    key = override.key_or_group
    chooses = key in (*command.choices(), *command.groups()) or "/" in key or override.package is not None
    plain = override.type == OverrideType.CHANGE and not override.is_sweep_override()
    return plain and not chooses and not override.is_hydra_override()


def _is_foreign_group(command: Command, key: str, where: list[Path]) -> bool:
    return key not in command.choices() and any((folder / key).is_dir() for folder in where)


def _refuse_code(config: DictConfig) -> None:
    """Raise a ConfigError if a yaml file names code, which only Hydra's launchers and sweepers may."""
    for path, target in _targets(OmegaConf.to_container(config), ""):
        if not (path.startswith("hydra.") and str(target).startswith(PLUGINS)):
            raise ConfigError(f"{path}={target} in a yaml file: no setting names code to run; take it out")


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each ``_target_`` in a nested config."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        key_path = f"{path}.{key}" if path else str(key)
        if key == TARGET:
            yield key_path, value
        yield from _targets(value, key_path)


def plain(config: DictConfig) -> PlainDict:
    """A config as nested dicts and lists, with interpolations resolved."""
    return cast(PlainDict, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def as_yaml(config: DictConfig) -> str:
    """Format a config as YAML."""
    return OmegaConf.to_yaml(config, resolve=True)
