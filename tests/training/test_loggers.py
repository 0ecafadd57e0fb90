"""Loggers: they receive the content of metrics.jsonl, cannot end a training, and the real ones write real files."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.core import registry
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig, decode
from modular_gpt.training.loggers import Logger, LoggerConfig, build_loggers
from modular_gpt.training.metrics import read_metrics
from tests.training.small import one_layer as config
from tests.training.small import run, stop_after

HEARD: list[tuple[Any, ...]] = []


@pytest.fixture
def notes() -> Iterator[list[tuple[Any, ...]]]:
    """Register a logger ``notes`` that records all calls and can be made to fail; returns the calls."""
    before = dict(registry._entries["logger"])

    class Notes(Logger, name="notes"):
        """Records all calls."""

        @dataclass
        class Config(LoggerConfig):
            """fails: the methods that raise"""

            fails: list[str] = field(default_factory=list)

        def record(self, method: str, *values: Any) -> None:
            HEARD.append((method, *values))
            if method in self.config.fails:
                raise OSError("no network\nand more lines")

        def start(self, settings: Mapping[str, Any], directory: Path, resumed_at: int | None) -> None:
            self.record("start", settings["logger"]["name"], directory, resumed_at)

        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            self.record("scalars", step, dict(values))

        def text(self, step: int, sample: str) -> None:
            self.record("text", step, sample)

        def finish(self, outcome: Mapping[str, Any]) -> None:
            self.record("finish", dict(outcome))

    HEARD.clear()
    yield HEARD
    registry._entries["logger"] = before


def test_a_logger_receives_the_written_metrics(folder: Path, notes: list[tuple[Any, ...]]) -> None:
    result = run(config(folder, logger="notes"))
    assert notes[0] == ("start", "notes", result.directory.resolve(), None)
    scalars = [{"step": step, **values} for method, step, *rest in notes if method == "scalars" for values in rest]
    assert scalars == read_metrics(result.directory)
    samples = [call for call in notes if call[0] == "text"]
    assert [step for _, step, _ in samples] == [4, 8, 12] and all(text for *_, text in samples)
    assert result.outcome is not None
    assert notes[-1][0] == "finish" and notes[-1][1]["loss"] == result.outcome.loss


def test_a_resumed_run_passes_its_step(
    folder: Path, notes: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        directory = run(config(folder, logger="notes")).directory
    assert notes[-1] == ("finish", {})
    notes.clear()
    run(config(folder, logger="notes", resume=str(folder / "runs" / "latest")))
    assert notes[0] == ("start", "notes", directory.resolve(), 5)
    assert [call[1] for call in notes if call[0] == "scalars" and "loss" in call[2]] == [6, 9, 12]


def test_several_loggers(folder: Path, notes: list[tuple[Any, ...]]) -> None:
    run(config(folder, logger={"name": "none", "also": ["notes"]}))
    assert [call[0] for call in notes if call[0] in ("start", "finish")] == ["start", "finish"]
    with pytest.raises(ConfigError, match=r"no logger 'note'; did you mean 'notes'\?"):
        config(folder, logger={"name": "none", "also": ["note"]})


@pytest.mark.parametrize("method", ["scalars", "text", "finish"])
def test_a_failing_logger_is_disabled(
    method: str, folder: Path, notes: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    result = run(config(folder, logger={"name": "notes", "fails": [method]}))
    assert result.outcome is not None
    assert [entry["step"] for entry in read_metrics(result.directory)] == [3, 4, 6, 8, 9, 12, 12]
    assert "logger=notes failed (no network) and is left out from here on" in caplog.text
    assert len([call for call in notes if call[0] == method]) == 1


def test_a_logger_that_cannot_start(folder: Path, notes: list[tuple[Any, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"logger=notes cannot start \(no network\)"):
        run(config(folder, logger={"name": "notes", "fails": ["start"]}))


PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_reported_before_the_run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    for logger in (name, {"name": "none", "also": [name]}):
        with pytest.raises(ConfigError) as error:
            run(config(folder, logger=logger))
        assert str(error.value) == f"logger={name} needs another package: pip install 'modular-gpt[{name}]'"
    assert not (folder / "runs").exists()


def test_weights_and_biases_without_an_account(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match=r"logger=wandb cannot log in .*WANDB_MODE=offline"):
        build_loggers("wandb")


def resumed(folder: Path, logger: str | ComponentConfig) -> Path:
    """A run of 8 steps that is resumed with other settings from step 4 to 12."""
    directory = run(config(folder, logger=logger, max_steps=8)).directory
    again = str(directory / "checkpoints" / "step_00000004")
    assert run(
        config(folder, logger=logger, resume=again, rewind=True, optim={"name": "muon", "learning_rate": 1e-4})
    ).outcome
    return directory


def test_tensorboard_files_can_be_read(folder: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    directory = resumed(folder, "tensorboard")
    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    entries = read_metrics(directory)
    for name in ("loss", "learning_rate", "validation_loss", "memory_bytes"):
        written = [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(name)]
        assert written == [(entry["step"], entry[name]) for entry in entries if name in entry]
    samples = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("sample/text_summary")]
    assert len(samples) == 4 and all(sample.startswith("    ") for sample in samples)
    assert b"name: tensorboard" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_weights_and_biases_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    directory = resumed(folder, "wandb")
    sessions = list((directory / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    assert all(list(session.glob(f"run-{directory.name}.wandb")) for session in sessions)


def test_trackio(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="needs the extra trackio")
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", folder / "trackio")
    directory = resumed(folder, "trackio")
    assert sqlite_storage.SQLiteStorage.get_runs("modular_gpt") == [directory.name]
    steps = [log["step"] for log in sqlite_storage.SQLiteStorage.get_logs("modular_gpt", directory.name)]
    assert set(steps) == {3, 4, 6, 8, 9, 12}


def test_mlflow_in_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = folder / "mlflow store"
    directory = resumed(folder, decode("logger", {"name": "mlflow", "tracking_uri": str(store)}))
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("modular_gpt")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == directory.name and run.info.status == "FINISHED"
    entries = read_metrics(directory)
    for name in ("loss", "validation_loss"):
        written = {(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)}
        assert written >= {(entry["step"], entry[name]) for entry in entries if name in entry}
    assert run.data.params["trainer.max_steps"] == "8" and run.data.params["logger.name"] == "mlflow"
    assert run.data.tags["outcome.steps"] == "12"
    samples = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "samples")]
    assert samples == [f"samples/step_{step:08}.txt" for step in (4, 8, 12)]
