"""The keyword settings of ``fit``, by the names of a run's settings or by those of other programs."""

import math
from collections.abc import Mapping
from dataclasses import replace

from modular_gpt.core.aliases import TRAINING_SETTINGS, no_counterpart, our_value
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import decode, encode
from modular_gpt.data.in_memory import InMemoryData
from modular_gpt.data.prepared import PreparedData
from modular_gpt.model.config import GPTConfig
from modular_gpt.training.config import RunConfig, TrainerConfig
from modular_gpt.training.length import with_steps

RUN_SETTINGS = ("optim", "schedule", "seed")  # settings of a RunConfig that ``fit`` takes by their names
SLOTS = ("optim", "schedule")  # whose settings ``fit`` takes without the slot's name, too
LENGTHS = ("max_steps", "max_tokens")
NO_KEYWORDS = ("final_evaluation", "epochs")  # trainer settings without effect in ``fit``, or with an argument
NEEDS = {  # settings that do nothing unless another argument is given
    "checkpoint": ("save_interval", "keep", "keep_every", "async_save"),
    "validation": ("eval_interval", "eval_batches", "patience", "sample_prompt", "sample_tokens", "sample_temperature"),
}
EVALUATIONS, ENTRIES = 10, 50  # least number of evaluations, and of entries of the history, of a short training


def read_settings(settings: PlainMapping) -> PlainDict:
    """The settings of a RunConfig from keywords, with ``trainer``, ``optim`` and ``schedule`` as mappings.

    Raises:
        ConfigError: a setting is unknown, has no exact counterpart, or contradicts another one.
    """
    run: PlainDict = {"trainer": {}}
    for slot in SLOTS:
        given = settings.get(slot, RunConfig.__dataclass_fields__[slot].default)
        run[slot] = encode(decode(slot, given))
    origin: dict[str, str] = {}
    for name, value in settings.items():
        if name in SLOTS:
            continue
        path = _path(name, run)
        if path in origin:
            raise ConfigError(f"{name}={value!r} and {origin[path]} set the same: give one of them")
        origin[path] = name
        group, _, setting = path.rpartition(".")
        (run[group] if group else run)[setting] = our_value(path, value)
    return run


def _path(name: str, run: PlainMapping) -> str:
    """The dotted place of a setting in a RunConfig, such as ``trainer.max_steps``."""
    trainer = [field for field in TrainerConfig.__dataclass_fields__ if field not in NO_KEYWORDS]
    if name in trainer:
        return f"trainer.{name}"
    if name in RUN_SETTINGS:
        return name
    for slot in SLOTS:
        if name != "name" and name in run[slot]:
            return f"{slot}.{name}"
    alias = TRAINING_SETTINGS.get(name)
    if alias is not None and alias.targets[0].startswith(("trainer.", "optim.", "schedule.", "seed")):
        if alias.note:
            raise ConfigError(no_counterpart(name))
        return alias.targets[0]
    known = ["epochs", "validation", "checkpoint", "quiet", *RUN_SETTINGS, *trainer]
    known += [setting for slot in SLOTS for setting in run[slot] if setting != "name"]
    raise ConfigError(f"fit: {unknown('setting', name, known)}")


def run_config(
    model: GPTConfig, data: PreparedData, epochs: float | None, checkpoint: bool, settings: PlainMapping
) -> RunConfig:
    """The settings of a training of a model with the config ``model`` on ``data``.

    epochs: passes over the data; None: ``max_steps`` or ``max_tokens`` sets the length, or else one pass
    checkpoint: whether the training writes checkpoints

    Raises:
        ConfigError: a setting is unknown or cannot work, or has no effect here.
    """
    run = read_settings(settings)
    trainer = run["trainer"]
    _check_effects(trainer, {"checkpoint": checkpoint, "validation": data.validates})
    size = data.train.batch_size if isinstance(data, InMemoryData) else None
    if size is not None and trainer.setdefault("batch_size", size) != size:
        raise ConfigError(f"batch_size={trainer['batch_size']}: the DataLoader makes batches of {size}; leave it out")
    given = [f"{name}={trainer[name]}" for name in LENGTHS if trainer.get(name) is not None]
    if given and epochs is not None:
        raise ConfigError(f"epochs={epochs} and {given[0]} both set the length of the training: give one")
    if not given:
        trainer["epochs"] = 1 if epochs is None else epochs
        trainer.setdefault("order", "epoch")
    rows = isinstance(data, InMemoryData) and not data.has_windows
    if rows and trainer.setdefault("order", "epoch") != "epoch":
        raise ConfigError(f"order={trainer['order']} is for text: rows are read once per epoch; leave it out")
    config = RunConfig.from_dict({**run, "model": model.to_dict(), "name": "fit"})
    config = with_steps(config, data, model.context_length)
    return replace(config, trainer=replace(config.trainer, **_intervals(config.trainer.max_steps, trainer)))


def _intervals(steps: int, given: PlainMapping) -> PlainDict:
    """Defaults of ``fit`` for a number of steps, without the given settings: shorter intervals, and no sample."""
    defaults = {
        "eval_interval": max(1, min(TrainerConfig.eval_interval, math.ceil(steps / EVALUATIONS))),
        "log_interval": max(1, min(TrainerConfig.log_interval, steps // ENTRIES)),
        "sample_tokens": 0,
    }
    return {name: value for name, value in defaults.items() if name not in given}


def _check_effects(trainer: Mapping[str, object], given: Mapping[str, bool]) -> None:
    for needed, names in NEEDS.items():
        found = [name for name in names if name in trainer]
        if found and not given[needed]:
            raise ConfigError(f"{found[0]}={trainer[found[0]]} has no effect without {needed}: give that too")
