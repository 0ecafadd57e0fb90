"""The length of a training in steps, computed from a number of epochs or tokens when a run starts."""

import math
from dataclasses import replace

from modular_gpt.core.errors import ConfigError
from modular_gpt.data import PreparedData
from modular_gpt.training.config import RunConfig, TrainerConfig


def with_steps(config: RunConfig, data: PreparedData, block: int) -> RunConfig:
    """The same settings with ``max_steps`` in place of ``epochs`` or ``max_tokens``.

    block: number of tokens of a row

    Raises:
        ConfigError: the data has no epochs, ``max_tokens`` are too few for a step, or the schedule does not fit.
    """
    trainer = config.trainer
    if trainer.epochs is None and trainer.max_tokens is None:
        return config
    steps = steps_of_epochs(trainer, data, block) if trainer.max_tokens is None else steps_of_tokens(trainer, block)
    return replace(config, trainer=replace(trainer, max_steps=steps, epochs=None, max_tokens=None))


def steps_of_epochs(trainer: TrainerConfig, data: PreparedData, block: int) -> int:
    """The number of steps of ``trainer.epochs`` passes, rounded up: the last one may read rows of another pass."""
    rows = data.rows_per_epoch(block)
    if rows is None:
        raise ConfigError(
            f"this data is new at every step and has no epochs: give trainer.max_steps instead of"
            f" trainer.epochs={trainer.epochs}"
        )
    assert trainer.epochs is not None
    return max(1, math.ceil(trainer.epochs * rows / trainer.batch_size))


def steps_of_tokens(trainer: TrainerConfig, block: int) -> int:
    """The largest number of steps that take no more than ``trainer.max_tokens``."""
    assert trainer.max_tokens is not None
    per_step = trainer.batch_size * block
    if trainer.max_tokens < per_step:
        raise ConfigError(
            f"trainer.max_tokens={trainer.max_tokens:,} are fewer than the {per_step:,} of one step: give more, or"
            " lower trainer.batch_size"
        )
    return trainer.max_tokens // per_step
