"""No logger; metrics.jsonl and metrics.csv are always written."""

from dataclasses import dataclass

from modular_gpt.training.loggers.base import Logger, LoggerConfig


class NoLogger(Logger, name="none"):
    """Only metrics.jsonl and metrics.csv, which every run writes."""

    @dataclass
    class Config(LoggerConfig):
        pass
