"""The interface of loggers, which send a run's metrics to other places than metrics.jsonl and metrics.csv."""

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
    """Receives a run's metrics; every method does nothing by default.

    The constructor runs before the run has a directory; it raises a ConfigError if a package or an account is missing.
    After ``start`` has returned, a logger whose method raises an exception is removed, and training continues.
    """

    def __init__(self, config: C) -> None:
        self.config = config

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        """Called when the run begins, or resumes after step ``resumed_at``."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Called with the metrics of a step, by their names in metrics.jsonl."""

    def text(self, step: int, sample: str) -> None:
        """Called with the text that the model generated at a step."""

    def finish(self, outcome: PlainMapping) -> None:
        """Called at the end with the metrics of the report; without them if the run ended early and can be resumed."""


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Context manager: a failing import becomes a ConfigError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"logger={extra} needs another package: pip install 'modular-gpt[{extra}]'") from error
