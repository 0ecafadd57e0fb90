"""Weights & Biases (https://wandb.ai): metrics on a server, or with WANDB_MODE=offline in files to be sent later."""

import html
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modular_gpt.core.errors import ConfigError, first_line
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.training.loggers.base import Logger, LoggerConfig, needing

MODE, WITHOUT_ACCOUNT = "WANDB_MODE", ("offline", "disabled")


class WeightsAndBiases(Logger["WeightsAndBiases.Config"], name="wandb"):
    """Weights & Biases; WANDB_MODE=offline needs neither account nor network.

    A run is identified by the name of its directory, so that a resumed run continues the same one.
    """

    @dataclass
    class Config(LoggerConfig):
        """Settings of Weights & Biases.

        project: Project of the run.
        entity: Account or team that owns the project. By default (null) your own.
        group: Name of a group of runs, such as the seeds of one experiment. By default (null) none.
        tags: Tags of the run.
        """

        project: str = "modular_gpt"
        entity: str | None = None
        group: str | None = None
        tags: list[str] = field(default_factory=list)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with needing("wandb"):
            import wandb
        self.wandb = wandb
        if os.environ.get(MODE) in WITHOUT_ACCOUNT:
            return
        try:
            wandb.login()  # asks where there is a terminal
        except wandb.errors.Error as error:
            raise ConfigError(
                f"logger=wandb cannot log in ({first_line(error)}): type `wandb login`, set WANDB_API_KEY, or"
                " set WANDB_MODE=offline"
            ) from error

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        mode: Any = os.environ.get(MODE)  # wandb itself reads it only once in a process
        self.run = self.wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            tags=list(self.config.tags),
            id=re.sub(r"[^\w.-]", "_", directory.name),
            name=directory.name,
            dir=str(directory),
            config=dict(settings),
            resume=None if resumed_at is None else "allow",
            allow_val_change=True,
            mode=mode,
        )
        # wandb's step cannot go back; this metric can, for steps that are computed again after an interruption
        self.run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log({"step": step, **values})

    def text(self, step: int, sample: str) -> None:
        self.run.log({"step": step, "sample": self.wandb.Html(f"<pre>{html.escape(sample)}</pre>")})

    def finish(self, outcome: PlainMapping) -> None:
        self.run.summary.update({f"outcome/{name}": value for name, value in outcome.items()})
        self.run.finish()
