"""The settings of ``fit``: keywords by the names of a run's settings, or those of other programs."""

import math
from collections.abc import Mapping

from modular_gpt.core.aliases import TRAINING_SETTINGS, no_counterpart, our_value
from modular_gpt.core.errors import ConfigError, unknown
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.core.registry import decode, encode
from modular_gpt.core.validation import positive
from modular_gpt.data.in_memory import InMemoryData
from modular_gpt.data.prepared import PreparedData
from modular_gpt.model.config import GPTConfig
from modular_gpt.training.config import RunConfig, TrainerConfig

WHOLE = ("optim", "schedule", "seed")  # settings of a run that are given by their names
SLOTS = ("optim", "schedule")  # whose settings are given without the slot's name too
WITHOUT_EFFECT = ("final_evaluation",)
NEEDS = {  # settings that do nothing unless another argument is given
    "checkpoint": ("save_interval", "keep", "keep_every"),
    "validation": ("eval_interval", "eval_batches", "patience", "sample_prompt", "sample_tokens", "sample_temperature"),
}
EVALUATIONS, ENTRIES = 10, 50  # of a short training, at least


def read_settings(settings: PlainMapping) -> PlainDict:
    """The settings of a RunConfig from keywords: ``trainer`` as a mapping, ``optim`` and ``schedule`` likewise.

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
    trainer = [field for field in TrainerConfig.__dataclass_fields__ if field not in WITHOUT_EFFECT]
    if name in trainer:
        return f"trainer.{name}"
    if name in WHOLE:
        return name
    for slot in SLOTS:
        if name != "name" and name in run[slot]:
            return f"{slot}.{name}"
    alias = TRAINING_SETTINGS.get(name)
    if alias is not None and alias.targets[0].startswith(("trainer.", "optim.", "schedule.", "seed")):
        if alias.note:
            raise ConfigError(no_counterpart(name))
        return alias.targets[0]
    known = ["epochs", "validation", "checkpoint", "quiet", *WHOLE, *trainer]
    known += [setting for slot in SLOTS for setting in run[slot] if setting != "name"]
    raise ConfigError(f"fit: {unknown('setting', name, known)}")


def run_config(
    model: GPTConfig, data: PreparedData, epochs: float | None, checkpoint: bool, settings: PlainMapping
) -> RunConfig:
    """The settings of a training of a model of this config on some data.

    epochs: passes over the data; None: as many as ``max_steps`` makes, or one
    checkpoint: whether the training writes checkpoints

    Raises:
        ConfigError: a setting is unknown or cannot work, or has no effect here.
    """
    run = read_settings(settings)
    trainer = run["trainer"]
    _check_effects(trainer, {"checkpoint": checkpoint, "validation": data.validates})
    own = data.train.batch_size if isinstance(data, InMemoryData) else None
    if own is not None and trainer.setdefault("batch_size", own) != own:
        raise ConfigError(f"batch_size={trainer['batch_size']}: the DataLoader makes batches of {own}; leave it out")
    trainer.setdefault("batch_size", TrainerConfig.batch_size)
    if trainer.get("max_steps") is None:
        trainer["max_steps"] = steps_of(data, model.context_length, trainer["batch_size"], epochs)
        trainer.setdefault("order", "epoch")
    elif epochs is not None:
        raise ConfigError(f"epochs={epochs} and max_steps={trainer['max_steps']} both say when to end: give one")
    rows = isinstance(data, InMemoryData) and not data.has_windows
    if rows and trainer.setdefault("order", "epoch") != "epoch":
        raise ConfigError(f"order={trainer['order']} is for text: rows are read once per epoch; leave it out")
    steps = trainer["max_steps"]
    if isinstance(steps, int):
        trainer.setdefault("eval_interval", max(1, min(TrainerConfig.eval_interval, math.ceil(steps / EVALUATIONS))))
        trainer.setdefault("log_interval", max(1, min(TrainerConfig.log_interval, steps // ENTRIES)))
    trainer.setdefault("sample_tokens", 0)
    return RunConfig.from_dict({**run, "model": model.to_dict(), "name": "fit"})


def _check_effects(trainer: Mapping[str, object], given: Mapping[str, bool]) -> None:
    for needed, names in NEEDS.items():
        found = [name for name in names if name in trainer]
        if found and not given[needed]:
            raise ConfigError(f"{found[0]}={trainer[found[0]]} has no effect without {needed}: give that too")


def steps_of(data: PreparedData, block: int, batch_size: int, epochs: float | None) -> int:
    """The number of steps of some passes over the data; the last one may begin another pass.

    Raises:
        ConfigError: the length of a pass is not known.
    """
    epochs = 1 if epochs is None else epochs
    positive("fit", epochs=epochs, batch_size=batch_size)
    rows = data.rows_per_epoch(block)
    if rows is None:
        raise ConfigError("the data does not know how long a pass is: give max_steps instead of epochs")
    return max(1, math.ceil(epochs * rows / batch_size))
