"""Seconds per training step of each variant, measured in turns so that a busy machine slows all of them."""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack

from modular_gpt.comparison.trial import trainer_of
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.training.config import RunConfig
from modular_gpt.training.trainer import Trainer

TURNS, STEPS = 7, 5  # turns of every variant, of which the first is a warmup; steps in a turn


def step_seconds(runs: Mapping[str, PlainDict]) -> dict[str, float]:
    """Seconds of one optimizer step by variant: the median over interleaved turns."""
    with ExitStack() as stack:
        trainers = {name: stack.enter_context(trainer_of(RunConfig.from_dict(run))) for name, run in runs.items()}
        for trainer in trainers.values():
            trainer.model.train()
        turns = [{name: seconds_of_turn(trainer) for name, trainer in trainers.items()} for _ in range(TURNS)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) / STEPS for name in runs}


def seconds_of_turn(trainer: Trainer) -> float:
    """The seconds of ``STEPS`` steps."""
    begun = time.perf_counter()
    for _ in range(STEPS):
        trainer.update()
        trainer.progress.step += 1
    trainer.averages.read()  # waits for the device
    return time.perf_counter() - begun
