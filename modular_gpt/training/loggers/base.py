"""What a logger is: one more place that a run's figures go to, besides metrics.jsonl and metrics.csv."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import C, Component, ComponentConfig, decode


@dataclass
class LoggerConfig(ComponentConfig):
    """Settings that all loggers share.

    also: Names of further loggers to use at the same time, with their default settings.
    """

    also: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.also:
            decode("logger", name)


class Logger(Component, Generic[C], slot="logger"):
    """Takes a run's figures as they come; every method does nothing by default.

    It is made before a run has a directory, which is the time to raise a ConfigError for a package or an account that
    is missing. Once ``start`` has returned, what a method raises leaves the logger out and lets the training go on.
    """

    def __init__(self, config: C) -> None:
        self.config = config

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        """The run begins, with these settings and in this directory; or goes on after step ``resumed_at``."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of a step, by the names that they have in metrics.jsonl."""

    def text(self, step: int, sample: str) -> None:
        """What the model wrote at a step."""

    def finish(self, outcome: PlainMapping) -> None:
        """The run ends: the figures of its report, or nothing where it ended early and can be resumed."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Where the import inside fails, a ConfigError that names the extra of this package to install."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"logger={extra} needs another package: pip install 'modular-gpt[{extra}]'") from error
