"""TensorBoard (https://www.tensorflow.org/tensorboard): event files that its server shows in a browser."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.training.loggers.base import Logger, LoggerConfig, needing

FOLDER = "tensorboard"  # in the run's directory


class TensorBoard(Logger["TensorBoard.Config"], name="tensorboard"):
    """Event files in the run's folder `tensorboard`; see them with `tensorboard --logdir runs`."""

    @dataclass
    class Config(LoggerConfig):
        pass

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with needing("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.new_writer = SummaryWriter

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        """TensorBoard hides events of an earlier session after ``resumed_at``, which are computed again."""
        purge = None if resumed_at is None else resumed_at + 1
        self.writer = self.new_writer(str(directory / FOLDER), purge_step=purge)
        if resumed_at is None:
            self.writer.add_text("config", quoted(yaml.safe_dump(dict(settings), sort_keys=False)), 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def text(self, step: int, sample: str) -> None:
        self.writer.add_text("sample", quoted(sample), step)

    def finish(self, outcome: PlainMapping) -> None:
        if outcome:
            self.writer.add_text("outcome", quoted(yaml.safe_dump(dict(outcome), sort_keys=False)), outcome["steps"])
        self.writer.close()


def quoted(text: str) -> str:
    """A Markdown code block, which TensorBoard shows unchanged."""
    return "\n".join(f"    {line}" for line in text.split("\n"))
