"""From words on the command line, or in a notebook, to the RunConfig that training takes."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from modular_gpt.checkpoint.resolve import tokenizer_settings
from modular_gpt.cli.composition.compose import composed, plain
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.overrides import NONE, Override, read_overrides
from modular_gpt.cli.composition.run_name import about_the_model, run_name
from modular_gpt.cli.composition.schema import Command, described, fields_of, folders, names_of
from modular_gpt.core.atomic_files import resolve_link
from modular_gpt.core.errors import ConfigError
from modular_gpt.model.config import SLOTS, GPTConfig, LayersConfig
from modular_gpt.training.config import SLOTS as RUN_SLOTS
from modular_gpt.training.config import RunConfig, TrainerConfig

SIZE = ("d_model", "n_heads", "n_layers", "context_length")
MODEL_GROUPS = (*SLOTS, "layers")  # groups that are settings of the model by the same name
RESUME = "a run's directory, or a checkpoint, to go on with; what is not set stays as it was there"


_plain_model = names_of(GPTConfig) - {"vocab_size", *SIZE, *MODEL_GROUPS}
_plain_run = names_of(RunConfig) - {"model", "trainer", *RUN_SLOTS}
ModelSize = make_dataclass(
    "ModelSize",
    fields_of(GPTConfig, SIZE),
    namespace=described(GPTConfig, first="n_layers: blocks, one after the other; n_heads: of attention, in each"),
)
ModelSettings = make_dataclass(
    "ModelSettings",
    [("vocab_size", int | None, None), *fields_of(GPTConfig, _plain_model)],
    namespace=described(GPTConfig, first="vocab_size null: as many ids as the tokenizer has"),
)
RunSettings = make_dataclass(
    "RunSettings",
    [("model", ModelSettings, dataclasses.field(default_factory=ModelSettings)), *fields_of(RunConfig, _plain_run)],
    namespace=described(RunConfig, first="runs: where each run gets a directory of its own\nresume: " + RESUME),
)
TRAIN = Command(
    name="train",
    plain=RunSettings,
    tables={"model_size": ModelSize, "layers": LayersConfig, "trainer": TrainerConfig},
    slots=True,
)


def run_config(config: DictConfig) -> RunConfig:
    """A composed config as the plain dataclasses of training.

    Raises:
        ConfigError: anything in it that cannot work.
    """
    return RunConfig.from_dict(run_settings(plain(config)))


def run_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The groups of the command line as the fields of a RunConfig."""
    values = dict(values)
    model = {**values.pop("model"), **values.pop("model_size"), **{group: values.pop(group) for group in MODEL_GROUPS}}
    if model["vocab_size"] is None:
        del model["vocab_size"]
    for group in TRAIN.choices():
        if group not in TRAIN.groups():
            values.pop(group, None)
    return {**values, "model": model}


def compose(*overrides: str, config_dir: str | None = None) -> RunConfig:
    """See ``modular_gpt.compose``."""
    return composed_run(overrides, folders(config_dir))[0]


def composed_run(words: Sequence[str], where: list[Path]) -> tuple[RunConfig, DictConfig]:
    """The RunConfig of some words, and the config that it was read from.

    A run that no name is given to is named after what was set; one that is resumed keeps what was not set.
    """
    typed, spelled = read_overrides(TRAIN, words, where)
    with explained(TRAIN, where):
        # a setting of a part that the other model has, and the default one has not, is composed with that part
        source = _typed("init_from", typed) if _typed("resume", typed) is None else None
        config = composed(TRAIN, spelled, where) if source is None else started_from(source, typed, spelled, where)
        if config.resume is not None:
            return _resumed(config.resume, typed, spelled, where)
        if source is None and config.init_from is not None:  # an experiment says so
            config = started_from(config.init_from, typed, spelled, where)
        if config.name == RunConfig.name:
            telling = [each for each in typed if about_the_model(each.key)]
            config.name = run_name(telling, TRAIN.choices()) or config.name
        return run_config(config), config


def _typed(key: str, typed: Sequence[Override]) -> str | None:
    """What a setting was set to last; None for nothing and for null."""
    values = [each.value for each in typed if each.key == key]
    return values[-1] if values and values[-1] != NONE else None


def started_from(source: str, typed: Sequence[Override], spelled: list[str], where: list[Path]) -> DictConfig:
    """The config of a run that starts from another model: the model's settings and tokenizer, but for what was typed.

    Raises:
        CheckpointError: there is no such model, or its tokenizer is not known and none was typed.
        ConfigError: an experiment was chosen, which would set parts of the model at once.
    """
    from modular_gpt.training.finetune import open_source

    if any(each.key == "experiment" for each in typed):
        raise ConfigError("init_from keeps the model's settings: set what is to differ one by one, not by experiment=")
    opened = open_source(source)
    model = opened.model.config.to_dict()
    parts = {slot: model[slot] for slot in MODEL_GROUPS}
    chosen = {each.key for each in typed}
    if "tokenizer" not in chosen:
        parts["tokenizer"] = tokenizer_settings(source, opened)
    parts = {slot: settings for slot, settings in parts.items() if slot not in chosen}
    same = [f"{slot}={settings['name']}" for slot, settings in parts.items()]
    now = composed(TRAIN, [*same, *spelled], where)
    kept = ["vocab_size"] if "tokenizer" in parts else []
    values = {
        **({} if "model_size" in chosen else {f"model_size.{name}": model[name] for name in SIZE}),
        **{f"model.{name}": model[name] for name in [*kept, *sorted(_plain_model)]},
        **{f"{slot}.{name}": value for slot, each in parts.items() for name, value in each.items() if name != "name"},
    }
    config = copy.deepcopy(now)
    for key, value in values.items():
        OmegaConf.update(config, key, value, merge=False)
    for key in chosen - set(TRAIN.choices()):
        OmegaConf.update(config, key, OmegaConf.select(now, key), merge=False, force_add=True)
    leads = resolve_link(Path(source).expanduser())  # runs/latest will lead to the new run
    config.init_from = source if leads == Path(source) else str(leads)
    return config


def _resumed(
    resume: str, typed: Sequence[Override], spelled: list[str], where: list[Path]
) -> tuple[RunConfig, DictConfig]:
    """The settings of the run to go on with, but for those that were typed."""
    from modular_gpt.training.run import load_config

    if any(each.key == "experiment" for each in typed):
        raise ConfigError("resume keeps the settings of its run: set what is to differ one by one, not by experiment=")
    before = load_config(resume).to_dict()
    chosen = {each.key for each in typed}
    parts = {**before["model"], **before}
    same = [f"{slot}={parts[slot]['name']}" for slot in (*SLOTS, *RUN_SLOTS) if slot not in chosen]
    config = composed(TRAIN, [*same, *spelled], where)
    now = run_config(config).to_dict()
    for each in typed:
        for path in _paths(each.key):
            _copy(now, before, path)
    return RunConfig.from_dict({**before, "resume": resume}), config


def _paths(key: str) -> list[list[str]]:
    """Where a setting of the command line is in a RunConfig."""
    first, *rest = key.split(".")
    if first == "model_size":
        return [["model", name] for name in rest or SIZE]
    return [["model", first, *rest] if first in MODEL_GROUPS else [first, *rest]]


def _copy(source: dict[str, Any], target: dict[str, Any], path: list[str]) -> None:
    *parents, name = path
    for parent in parents:
        source, target = source[parent], target[parent]
    if name in source:
        target[name] = source[name]
