"""The variants that a command line describes: every combination of the values that commas separate."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from modular_gpt.cli.composition.compose import composed
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import Override, read_overrides
from modular_gpt.cli.composition.run_name import run_name
from modular_gpt.cli.composition.schema import read_yaml
from modular_gpt.cli.composition.train_config import MODEL_GROUPS, SIZE, TRAIN, run_config, started_from
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.training.config import RunConfig

TRIAL = {"model_size": "pico", "trainer": "trial"}  # default options of a trial

Named = tuple[str, list[str]]  # the name of a combination, and its settings in Hydra's language


def variants(
    settings: Sequence[str], files: Sequence[Path], where: list[Path], options: Mapping[str, str] = TRIAL
) -> dict[str, RunConfig]:
    """The variants by name: combinations of settings, and for each of them the configurations in files.

    settings: as on the command line; commas separate several values of a setting
    files: yaml files with settings of a run, such as a run's config.yaml, which override those of a combination
    options: by group, for groups in which the settings choose none

    Raises:
        ConfigError: a setting or a file cannot be read.
    """
    chosen = {setting.partition("=")[0] for setting in settings}
    kept = {"model_size"} if "init_from" in chosen else set()  # the size is that of the other model
    defaults = [f"{group}={option}" for group, option in options.items() if group not in chosen | kept]
    _, hydra_overrides = read_overrides(TRAIN, [*defaults, *settings], where, sweep=True)
    found: dict[str, RunConfig] = {}
    with explained(TRAIN, where):
        for name, combination in combinations(hydra_overrides):
            config = composed(TRAIN, combination, where)
            if config.init_from is not None:
                config = started_from(config.init_from, named(combination), combination, where)
            run = run_config(config)
            for label, variant in ((name, run),) if not files else over_files(name, run, files):
                found[unused(label, found)] = variant
    return found


def named(hydra_overrides: Sequence[str]) -> list[Override]:
    """The keys and values of settings in Hydra's language."""
    parsed = OverridesParser.create().parse_overrides(list(hydra_overrides))
    return [Override(override.key_or_group, str(override.value())) for override in parsed]


def combinations(hydra_overrides: Sequence[str]) -> Iterator[Named]:
    """Yield every combination of the values of swept settings, with a name made of them."""
    shared: list[str] = []
    swept: list[list[str]] = []
    for override in OverridesParser.create().parse_overrides(list(hydra_overrides)):
        if override.is_sweep_override():
            key = str(override.input_line).partition("=")[0]
            swept.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            shared.append(str(override.input_line))
    for combination in product(*swept):
        overrides = [Override(*setting.split("=", 1)) for setting in combination]
        yield run_name(overrides, TRAIN.choices()), [*shared, *combination]


def over_files(name: str, run: RunConfig, files: Sequence[Path]) -> Iterator[tuple[str, RunConfig]]:
    """The configuration of each file over the settings of a run."""
    for path in files:
        label = "-".join(filter(None, [path.stem, name]))
        yield label, RunConfig.from_dict(merged(run.to_dict(), from_file(path)))


def from_file(path: Path) -> PlainDict:
    """The settings of a yaml file as fields of a RunConfig; those of the model may be groups of the command line.

    Raises:
        ConfigError: the file is missing, or its content is no mapping.
    """
    if not path.is_file():
        raise ConfigError(
            f"no file '{path}': give the configurations to compare as yaml files with commas between them"
        )
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' has no settings: its content must be a mapping, such as a run's config.yaml")
    model = {**(values.pop("model", None) or {}), **(values.pop("model_size", None) or {})}
    model.update({name: values.pop(name) for name in (*MODEL_GROUPS, *SIZE) if name in values})
    return {**values, "model": model} if model else values


def merged(base: PlainMapping, changes: PlainMapping) -> PlainDict:
    """The settings of ``base`` with ``changes``; a component of another name replaces all settings of the former."""
    out = copy.deepcopy(dict(base))
    for name, value in changes.items():
        before = out.get(name)
        value = (
            {"name": value} if isinstance(before, Mapping) and "name" in before and isinstance(value, str) else value
        )
        same = (
            isinstance(before, Mapping)
            and isinstance(value, Mapping)
            and value.get("name") in (None, before.get("name"))
        )
        out[name] = merged(before, value) if same and isinstance(before, Mapping) else value
    return out


def unused(name: str, taken: Mapping[str, RunConfig]) -> str:
    """The name, with a number appended if it is taken; copies of a variant make an A/A comparison."""
    name = name or "default"
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 2))
    return name if name not in taken else next(other for other in numbered if other not in taken)
