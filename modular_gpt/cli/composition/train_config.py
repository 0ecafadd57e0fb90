"""Compose the RunConfig of a training from the command line, or from strings in a notebook."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from modular_gpt.checkpoint import CheckpointReader
from modular_gpt.checkpoint.resolve import tokenizer_settings
from modular_gpt.cli.composition.compose import composed, plain
from modular_gpt.cli.composition.errors import explained
from modular_gpt.cli.composition.families import FAMILY
from modular_gpt.cli.composition.overrides import NONE, Override, read_overrides, without_interpolation
from modular_gpt.cli.composition.run_name import about_the_model, run_name
from modular_gpt.cli.composition.schema import SIZES, Command, described, fields_of, folders, names_of
from modular_gpt.core.atomic_files import resolve_link
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.registry import decode, encode
from modular_gpt.model.config import SLOTS, GPTConfig, LayersConfig
from modular_gpt.training.config import SLOTS as RUN_SLOTS
from modular_gpt.training.config import RunConfig, TrainerConfig

SIZE = ("d_model", "n_heads", "n_layers", "context_length")
MODEL_GROUPS = (*SLOTS, "layers")  # groups that are settings of the model by the same name
LENGTHS = ("max_steps", "epochs", "max_tokens")
RESUME = "resume: Resume this run, or one of its checkpoints. Settings that are not given stay as they were."
VOCAB_SIZE = "vocab_size: Number of token ids. By default (null) as many as the tokenizer has."

_plain_model = names_of(GPTConfig) - {"vocab_size", *SIZE, *MODEL_GROUPS}
_plain_run = names_of(RunConfig) - {"model", "vocab_size", "trainer", *RUN_SLOTS}
ModelSize = make_dataclass(
    "ModelSize",
    fields_of(GPTConfig, SIZE),
    namespace=described(GPTConfig),
)
ModelSettings = make_dataclass(
    "ModelSettings",
    [("vocab_size", int | None, None), *fields_of(GPTConfig, _plain_model)],
    namespace=described(GPTConfig, first=VOCAB_SIZE),
)
RunSettings = make_dataclass(
    "RunSettings",
    [("model", ModelSettings, dataclasses.field(default_factory=ModelSettings)), *fields_of(RunConfig, _plain_run)],
    namespace=described(RunConfig, first=RESUME),
)


TRAIN = Command(
    name="train",
    plain=RunSettings,
    tables={"model_size": ModelSize, "layers": LayersConfig, "trainer": TrainerConfig},
    slots=True,
    sizes=SIZES,
)


def run_config(config: DictConfig) -> RunConfig:
    """A composed config as the plain dataclasses of training.

    Raises:
        ConfigError: a setting cannot work.
    """
    return RunConfig.from_dict(run_settings(plain(config)))


def run_settings(values: PlainDict) -> PlainDict:
    """The groups of the command line as the fields of a RunConfig."""
    values = dict(values)
    model = {**values.pop("model"), **values.pop("model_size"), **{group: values.pop(group) for group in MODEL_GROUPS}}
    if model["vocab_size"] is None:
        del model["vocab_size"]
    for group in TRAIN.choices():
        if group not in TRAIN.groups():
            values.pop(group, None)
    return {**values, "model": model}


class Composed(NamedTuple):
    """A run as the command line describes it.

    source: the composed config from which ``config`` was read
    checkpoint: of the resumed run; None for a new run
    """

    config: RunConfig
    source: DictConfig
    checkpoint: CheckpointReader | None = None


def compose(*overrides: str, config_dir: str | None = None) -> RunConfig:
    """See ``modular_gpt.compose``."""
    return composed_run(overrides, folders(config_dir)).config


def composed_run(arguments: Sequence[str], where: list[Path]) -> Composed:
    """The run that some overrides describe.

    A run without a name is named after the overrides. A resumed run keeps every setting that is not overridden.
    """
    typed, hydra_overrides = read_overrides(TRAIN, arguments, where)
    with explained(TRAIN, where, arguments):
        # overrides are composed over the components of the other run, whose settings may differ from the defaults
        resume, source = _typed("resume", typed), _typed("init_from", typed)
        if resume is None:
            config = (
                composed(TRAIN, hydra_overrides, where)
                if source is None
                else started_from(source, typed, hydra_overrides, where)
            )
            resume = config.resume  # which a yaml file may set
        if resume is not None:
            config, checkpoint = resumed_from(resume, typed, hydra_overrides, where)
            one_length(config, typed)
            return Composed(run_config(config), config, checkpoint)
        if source is None and config.init_from is not None:  # set by an experiment
            config = started_from(config.init_from, typed, hydra_overrides, where)
        if config.name == RunConfig.name:
            naming = [override for override in typed if about_the_model(override.key)]
            config.name = run_name(naming, TRAIN.choices()) or config.name
        one_length(config, typed)
        return Composed(run_config(config), config)


def one_length(config: DictConfig, typed: Sequence[Override]) -> None:
    """Reset other lengths of the training, of a yaml file or a resumed run, if one is given on the command line.

    Raises:
        ConfigError: two lengths are given.
    """
    given = [name for name in LENGTHS if _typed(f"trainer.{name}", typed) is not None]
    if len(given) > 1:
        raise ConfigError(f"trainer.{given[0]} and trainer.{given[1]} both set the length of the training: give one")
    for name in LENGTHS if given else ():
        if name not in given:
            OmegaConf.update(config, f"trainer.{name}", getattr(TrainerConfig, name))


def _typed(key: str, typed: Sequence[Override]) -> str | None:
    """The last value that a setting is overridden with; None if there is none, or for null."""
    values = [override.value for override in typed if override.key == key]
    return values[-1] if values and values[-1] != NONE else None


def started_from(source: str, typed: Sequence[Override], hydra_overrides: list[str], where: list[Path]) -> DictConfig:
    """The config of a run that starts from another model: that model's settings and tokenizer, then the overrides.

    With a family, the components and their settings are that family's, in the sizes of the other model.

    Raises:
        CheckpointError: there is no such model, or its tokenizer is not known and none is given.
        ConfigError: an experiment is chosen, which would replace several components at once.
    """
    from modular_gpt.training.finetune import open_source

    if any(override.key == "experiment" for override in typed):
        raise ConfigError("init_from keeps the model's settings: override single settings instead of experiment=")
    opened = open_source(source)
    base = _model_settings(opened.model.config.to_dict())
    if _typed(FAMILY, typed) is not None:  # all components are the family's; the sizes remain
        base = {"model_size": base["model_size"], "model": {"vocab_size": base["model"]["vocab_size"]}}
    if any(override.key == "tokenizer" for override in typed):
        del base["model"]["vocab_size"]
    else:
        base["tokenizer"] = encode(decode("tokenizer", tokenizer_settings(source, opened)))
    config = _composed_over(base, typed, hydra_overrides, where)
    target = resolve_link(Path(source).expanduser())  # runs/latest will be a link to the new run
    config.init_from = source if target == Path(source) else str(target)
    return config


def resumed_from(
    resume: str, typed: Sequence[Override], hydra_overrides: list[str], where: list[Path]
) -> tuple[DictConfig, CheckpointReader]:
    """The config of a resumed run, its recorded settings with the overrides, and its checkpoint.

    Raises:
        CheckpointError: there is no such run.
        ConfigError: an experiment or a family is chosen, which would replace several components at once.
    """
    from modular_gpt.training.run import open_run

    for group in ("experiment", FAMILY):
        if any(override.key == group for override in typed):
            raise ConfigError(f"resume keeps the settings of its run: override single settings instead of {group}=")
    run, checkpoint = open_run(resume)
    before = run.to_dict()
    config = _composed_over({**before, **_model_settings(before["model"])}, typed, hydra_overrides, where)
    config.resume = resume
    return config, checkpoint


def _model_settings(model: PlainDict) -> PlainDict:
    """A model's settings by the groups of the command line."""
    plain = {name: model.get(name) for name in sorted({"vocab_size", *_plain_model})}
    size = {name: model[name] for name in SIZE}
    return {"model": plain, "model_size": size, **{group: model[group] for group in MODEL_GROUPS}}


def _composed_over(
    base: PlainDict, typed: Sequence[Override], hydra_overrides: list[str], where: list[Path]
) -> DictConfig:
    """The settings ``base`` of another run, by group, and the overrides composed over them.

    A group that is overridden with its option in ``base`` keeps its settings; another option has its own defaults.
    ``base`` is data: an interpolation in it stays text.
    """
    replaced = {key for key in TRAIN.choices() if _replaces(base.get(key), _typed(key, typed))}
    kept = {group: settings for group, settings in base.items() if group not in replaced}
    names = [f"{group}={settings['name']}" for group, settings in kept.items() if group in TRAIN.slot_names()]
    overridden = composed(TRAIN, [*names, *hydra_overrides], where)
    config = copy.deepcopy(overridden)
    for key, value in _leaves(kept):
        OmegaConf.update(config, key, _literal(value), merge=False, force_add=True)
    for key in {override.key for override in typed} - set(TRAIN.choices()):
        OmegaConf.update(config, key, OmegaConf.select(overridden, key), merge=False, force_add=True)
    return config


def _replaces(settings: Any, option: str | None) -> bool:
    """Whether ``option`` is given and differs from the option that has these settings."""
    return option is not None and (not isinstance(settings, dict) or settings.get("name") != option)


def _leaves(base: PlainDict) -> Iterator[tuple[str, Any]]:
    """Dotted settings and their values; names of components are left out, since options choose them."""
    for group, settings in base.items():
        if group in (*TRAIN.choices(), "model", "lora"):
            yield from ((f"{group}.{name}", value) for name, value in settings.items() if name != "name")
        else:
            yield group, settings


def _literal(value: Any) -> Any:
    """The same value with every interpolation in its texts escaped."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return without_interpolation(value) if isinstance(value, str) else value
