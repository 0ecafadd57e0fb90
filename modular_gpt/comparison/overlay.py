"""Overlays existing runs: curves, last losses and the settings that differ, without a verdict."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from modular_gpt.comparison import html_page as html
from modular_gpt.comparison.plots import overlay, styles
from modular_gpt.comparison.svg import Point
from modular_gpt.comparison.tables import Table
from modular_gpt.comparison.text_report import aligned
from modular_gpt.core.atomic_files import resolve_link, write_text
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.json_files import load_json_object
from modular_gpt.core.plain_types import PlainDict, PlainMapping
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.run_info import INFO

STAMP = "One seed each: no verdict. A difference between two runs may be smaller than that between two seeds."
NOT_COMPARED = ("name", "runs")


@dataclass(frozen=True)
class Run:
    """A run, read from its directory.

    settings: flattened, by dotted name; train, validation: (tokens, loss)
    """

    name: str
    parameters: int
    settings: dict[str, str]
    train: list[Point]
    validation: list[Point]

    @classmethod
    def read(cls, directory: Path) -> "Run":
        """The run in a directory.

        Raises:
            ConfigError: it holds no run.
        """
        directory = resolve_link(directory)
        try:
            info = load_json_object(directory / INFO)
        except FileNotFoundError:
            raise ConfigError(f"'{directory}' holds no run: it has no {INFO}") from None
        entries = read_metrics(directory)
        steps = [entry for entry in entries if entry.get("tokens") and entry["step"]]
        size = steps[-1]["tokens"] / steps[-1]["step"] if steps else 0.0
        return cls(
            directory.name,
            int(info["parameters"]["total"]),
            flattened(info["config"]),
            [(entry["tokens"], entry["loss"]) for entry in steps if math.isfinite(entry.get("loss", math.nan))],
            [(entry["step"] * size, entry["validation_loss"]) for entry in entries if "validation_loss" in entry],
        )


@dataclass(frozen=True)
class Overlay:
    """Several runs beside each other."""

    runs: list[Run]

    @classmethod
    def of(cls, directories: Sequence[Path]) -> "Overlay":
        """The runs in some directories.

        Raises:
            ConfigError: there is one only, or a directory holds no run.
        """
        if len(directories) < 2:
            raise ConfigError(f"one run is nothing to compare: give another one beside '{directories[0]}'")
        return cls([Run.read(directory) for directory in directories])

    @property
    def rows(self) -> Table:
        """Parameters, tokens and losses of every run."""
        rows = [["run", "parameters", "tokens", "last validation loss", "best"]]
        for run in self.runs:
            losses = [loss for _, loss in run.validation]
            values = [f"{losses[-1]:.4f}", f"{min(losses):.4f}"] if losses else ["-", "-"]
            tokens = max((tokens for tokens, _ in [*run.train, *run.validation]), default=0)
            rows.append([run.name, f"{run.parameters:,}", f"{tokens:,.0f}", *values])
        return rows

    @property
    def differing(self) -> Table:
        """The settings in which the runs differ."""
        names = sorted({name for run in self.runs for name in run.settings})
        values = {name: [run.settings.get(name, "-") for run in self.runs] for name in names}
        rows = [[name, *found] for name, found in values.items() if len(set(found)) > 1]
        return [["setting", *(run.name for run in self.runs)], *rows]

    @property
    def table(self) -> str:
        """The runs as text."""
        return "\n".join([STAMP, "", aligned(self.rows), "", aligned(self.differing)])

    def save_report(self, parent: Path) -> Path:
        """Write a page into a new directory in ``parent``; returns its path."""
        train = {run.name: run.train for run in self.runs}
        validation = {run.name: run.validation for run in self.runs}
        sections = [
            html.lead(STAMP),
            html.table(self.rows),
            html.key(styles([run.name for run in self.runs])),
            html.plots(
                [
                    overlay(validation, "Validation loss", "nats per token"),
                    overlay(train, "Training loss", "nats per token"),
                ]
            ),
            html.heading("Settings that differ"),
            html.table(self.differing),
        ]
        directory = parent / f"{datetime.now():%Y%m%d-%H%M%S-%f}-overlay"
        directory.mkdir(parents=True)
        write_text(directory / "report.html", html.page(", ".join(run.name for run in self.runs), sections))
        return directory / "report.html"


def flattened(settings: PlainMapping, prefix: str = "") -> dict[str, str]:
    """Settings by dotted name, their values as JSON."""
    out: PlainDict = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            out.update(flattened(value, f"{prefix}{name}."))
        elif f"{prefix}{name}" not in NOT_COMPARED:
            out[f"{prefix}{name}"] = json.dumps(value)
    return out
