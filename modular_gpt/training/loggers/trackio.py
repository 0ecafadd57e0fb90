"""Trackio (https://github.com/gradio-app/trackio): metrics in a local database, or in a Space of Hugging Face."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.training.loggers.base import Logger, LoggerConfig, needing


class Trackio(Logger["Trackio.Config"], name="trackio"):
    """Trackio, a local database that `trackio show` draws; no account needed.

    A run is identified by the name of its directory, so that a resumed run continues the same one.
    """

    @dataclass
    class Config(LoggerConfig):
        """Settings of Trackio.

        project: Project of the run.
        space_id: The Space, as owner/name, that stores the metrics instead of this machine. By default (null) none.
        """

        project: str = "modular_gpt"
        space_id: str | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with needing("trackio"):
            import trackio
        self.trackio = trackio

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        self.run = self.trackio.init(
            project=self.config.project,
            name=directory.name,
            space_id=self.config.space_id,
            config=dict(settings),
            resume="never" if resumed_at is None else "allow",
            embed=False,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def text(self, step: int, sample: str) -> None:
        self.run.log({"sample": self.trackio.Markdown(f"```\n{sample}\n```")}, step=step)

    def finish(self, outcome: PlainMapping) -> None:
        if outcome:
            self.run.log({f"outcome/{name}": value for name, value in outcome.items()}, step=outcome["steps"])
        self.run.finish()
