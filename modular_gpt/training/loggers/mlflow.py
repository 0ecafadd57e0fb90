"""MLflow (https://mlflow.org): metrics on a tracking server, or in a folder of this machine."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.training.loggers.base import Logger, LoggerConfig, needing

URI, ALLOW_FOLDER = "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"  # environment variables of MLflow
BATCH, MAX_LENGTH = 100, 500  # MLflow's limits: parameters in one call, and characters of a value


class MLflow(Logger["MLflow.Config"], name="mlflow"):
    """MLflow, on a tracking server or in the folder `mlruns`.

    A run is identified by the name of its directory, so that a resumed run continues the same one. Metrics of steps
    that are computed again are added to those of the first time.
    """

    @dataclass
    class Config(LoggerConfig):
        """Settings of MLflow.

        experiment: Name of the experiment that the run belongs to.
        tracking_uri: Address of the server, or a folder. By default (null) MLFLOW_TRACKING_URI, or else the folder
            mlruns.
        """

        experiment: str = "modular_gpt"
        tracking_uri: str | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        with needing("mlflow"):
            import mlflow
        uri = config.tracking_uri or os.environ.get(URI) or "mlruns"
        if "://" not in uri:
            uri = Path(uri).expanduser().resolve().as_uri()
        if uri.startswith("file:"):  # MLflow 3 refuses folders unless this is set
            os.environ.setdefault(ALLOW_FOLDER, "true")
        self.client, self.entities = mlflow.MlflowClient(tracking_uri=uri), mlflow.entities

    def start(self, settings: PlainMapping, directory: Path, resumed_at: int | None) -> None:
        """Parameters cannot change in MLflow: those of a resumed run stay as they were at its beginning."""
        experiment = self.client.get_experiment_by_name(self.config.experiment)
        number = experiment.experiment_id if experiment else self.client.create_experiment(self.config.experiment)
        name = directory.name.replace("'", "_")
        found = self.client.search_runs([number], f"attributes.run_name = '{name}'") if resumed_at is not None else []
        if found:
            self.run = found[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            return
        self.run = self.client.create_run(number, run_name=name).info.run_id
        parameters = [self.entities.Param(key, value[:MAX_LENGTH]) for key, value in flat(settings)]
        for first in range(0, len(parameters), BATCH):
            self.client.log_batch(self.run, params=parameters[first : first + BATCH])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(name, value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def text(self, step: int, sample: str) -> None:
        self.client.log_text(self.run, sample, f"samples/step_{step:08}.txt")

    def finish(self, outcome: PlainMapping) -> None:
        for name, value in outcome.items():
            self.client.set_tag(self.run, f"outcome.{name}", str(value))
        self.client.set_terminated(self.run, "FINISHED" if outcome else "KILLED")


def flat(settings: PlainMapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting by its path, such as trainer.batch_size, as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
