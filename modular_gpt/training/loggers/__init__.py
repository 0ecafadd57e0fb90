"""Loggers send the metrics of a run to other places than its directory. Importing this package registers them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modular_gpt.core.errors import ConfigError, UserError, first_line
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import ComponentConfig, decode, import_folder
from modular_gpt.training.loggers.base import Logger, LoggerConfig

__all__ = ["Logger", "LoggerConfig", "Loggers", "build_loggers"]

import_folder(__name__, __path__)

log = logging.getLogger(__name__)


class Loggers:
    """Several loggers as one. A logger that fails after the start is removed, and training continues."""

    def __init__(self, loggers: Sequence[Logger] = ()) -> None:
        self.loggers = list(loggers)

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        """Start all loggers; ``resumed_at``: the step after which a run resumes.

        Raises:
            ConfigError: a logger cannot start.
        """
        begun: list[Logger] = []
        for logger in self.loggers:
            try:
                logger.start(settings, directory, resumed_at)
            except Exception as error:
                Loggers(begun).finish({})
                if isinstance(error, UserError):
                    raise
                raise ConfigError(f"logger={logger.config.name} cannot start ({first_line(error)})") from error
            begun.append(logger)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Pass the metrics of a step to all loggers."""
        self._call_all(lambda logger: logger.scalars(step, values))

    def text(self, step: int, sample: str) -> None:
        """Pass a sample to all loggers."""
        self._call_all(lambda logger: logger.text(step, sample))

    def finish(self, outcome: PlainMapping) -> None:
        """Finish all loggers; without metrics if the run ended early."""
        self._call_all(lambda logger: logger.finish(outcome))

    def _call_all(self, act: Callable[[Logger], None]) -> None:
        for logger in list(self.loggers):
            try:
                act(logger)
            except Exception as error:
                self.loggers.remove(logger)
                log.warning(
                    "logger=%s failed (%s) and is left out from here on; metrics.jsonl is still written",
                    logger.config.name,
                    first_line(error),
                )


def build_loggers(config: str | PlainMapping | ComponentConfig) -> Loggers:
    """Build a logger and the further ones that its setting ``also`` names.

    Raises:
        ConfigError: a name or setting is unknown, or a package or an account is missing.
    """
    chosen = decode("logger", config)
    also = chosen.also if isinstance(chosen, LoggerConfig) else []
    others = [decode("logger", name) for name in also if name != chosen.name]
    return Loggers([logger.build() for logger in [chosen, *others]])
