"""Learning-rate schedules: a factor on the peak learning rate as a pure function of the step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import Component, ComponentConfig, ComponentLike, decode
from modular_gpt.core.validation import not_negative


@dataclass
class ScheduleConfig(ComponentConfig):
    """Settings that all schedules share.

    warmup: Length of the linear warmup from 0. Below 1 it is a fraction of all steps, otherwise a number of steps.
    """

    warmup: float = 0.05

    def __post_init__(self) -> None:
        not_negative("schedule", warmup=self.warmup)


@dataclass
class EndingConfig(ScheduleConfig):
    """Settings of a schedule that decays until the last step.

    final: Learning rate at the last step, as a fraction of the peak.
    """

    final: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final <= 1:
            raise ConfigError(f"schedule.final must lie in [0, 1], got {self.final}")


class Schedule(Component, ABC, slot="schedule"):
    """The factor by which the peak learning rate is multiplied at each step."""

    def __init__(self, config: ScheduleConfig, max_steps: int) -> None:
        self.config = config
        self.max_steps = max_steps
        self.warmup_steps = round(config.warmup * max_steps if config.warmup < 1 else config.warmup)

    def factor(self, step: int) -> float:
        """The factor, in [0, 1], of the update from ``step`` to ``step + 1``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The factor at a step after the warmup."""

    def progress(self, step: int) -> float:
        """The fraction of the steps after the warmup: 0 at the end of the warmup, 1 at the last update."""
        return min(1.0, (step - self.warmup_steps) / max(1, self.max_steps - 1 - self.warmup_steps))


class Constant(Schedule, name="constant"):
    """Stays at the peak after the warmup."""

    @dataclass
    class Config(ScheduleConfig):
        """Settings of a constant learning rate."""

    def after_warmup(self, step: int) -> float:
        return 1.0


class Linear(Schedule, name="linear"):
    """Decays linearly to a fraction of the peak."""

    @dataclass
    class Config(EndingConfig):
        """Settings of linear decay."""

    config: Config

    def after_warmup(self, step: int) -> float:
        return 1 + (self.config.final - 1) * self.progress(step)


class Cosine(Schedule, name="cosine"):
    """Decays along half a cosine wave to a fraction of the peak (https://arxiv.org/abs/1608.03983)."""

    @dataclass
    class Config(EndingConfig):
        """Settings of cosine decay."""

    config: Config

    def after_warmup(self, step: int) -> float:
        wave = 0.5 * (1 + math.cos(math.pi * self.progress(step)))
        return self.config.final + (1 - self.config.final) * wave


class WarmupStableDecay(Schedule, name="wsd"):
    """Stays at the peak and decays linearly at the end only (https://arxiv.org/abs/2404.06395)."""

    @dataclass
    class Config(EndingConfig):
        """Settings of warmup, stable and decay.

        decay: Fraction of all steps that the decay takes.
        """

        final: float = 0.0
        decay: float = 0.2

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.decay <= 1:
                raise ConfigError(f"schedule.decay must lie in (0, 1], got {self.decay}")

    config: Config

    def __init__(self, config: Config, max_steps: int) -> None:
        super().__init__(config, max_steps)
        self.decay_steps = max(1, round(config.decay * max_steps))
        if self.warmup_steps < max_steps < self.warmup_steps + self.decay_steps:
            raise ConfigError(
                f"schedule.warmup takes {self.warmup_steps} and schedule.decay {self.decay_steps} of {max_steps} steps,"
                " which overlap: make one of them shorter"
            )

    def after_warmup(self, step: int) -> float:
        remaining = min(1.0, max(0, self.max_steps - 1 - step) / self.decay_steps)
        return self.config.final + (1 - self.config.final) * remaining


class InverseSquareRoot(Schedule, name="inverse_sqrt"):
    """Decays in proportion to 1 / sqrt(step), without an end (https://arxiv.org/abs/1706.03762)."""

    @dataclass
    class Config(ScheduleConfig):
        """Settings of inverse square root decay, which begins after the warmup."""

    def after_warmup(self, step: int) -> float:
        return math.sqrt(max(1, self.warmup_steps) / (step + 1))


def build_schedule(config: ComponentLike, max_steps: int) -> Schedule:
    """Build a schedule over ``max_steps`` updates from its name, a mapping with a name, or a Config.

    Raises:
        ConfigError: the name or a setting is unknown, the warmup is longer than ``max_steps``, or warmup and decay
            overlap.
    """
    schedule: Schedule = decode("schedule", config).build(max_steps)
    if schedule.warmup_steps > max_steps:
        raise ConfigError(
            f"schedule.warmup={schedule.config.warmup:g} steps are more than trainer.max_steps={max_steps}:"
            " make it shorter, or give a fraction below 1"
        )
    return schedule
