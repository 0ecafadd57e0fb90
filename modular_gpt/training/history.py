"""The metrics of a training by step, as lists, a plot and plain values."""

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.training.metrics import Curves, Entry
from modular_gpt.training.plot import best_result, loss_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 10  # of the table in a notebook
SIZE = (7.0, 4.2)  # width and height of a figure in a notebook, in inches


class History:
    """The metrics of a training: lists of numbers by step, a picture, and plain values.

    entries: those of metrics.jsonl, in order
    interrupted: whether Ctrl-C or another signal ended the training early
    """

    def __init__(self, entries: Iterable[Entry] = (), interrupted: bool = False) -> None:
        self.entries: list[Entry] = list(entries)
        self.interrupted = interrupted

    def add(self, entry: Entry) -> None:
        """Append the metrics of some steps, or of an evaluation."""
        self.entries.append(entry)

    @property
    def steps(self) -> list[int]:
        """The steps of ``train_loss`` and ``learning_rate``."""
        return [int(entry["step"]) for entry in self._training()]

    @property
    def train_loss(self) -> list[float]:
        """Means of the training loss over the steps since the entry before, in nats per token."""
        return [entry.get("loss", float("nan")) for entry in self._training()]

    @property
    def learning_rate(self) -> list[float]:
        """The learning rates at ``steps``."""
        return [entry["learning_rate"] for entry in self._training()]

    @property
    def validation_steps(self) -> list[int]:
        """The steps of ``validation_loss``."""
        return [int(entry["step"]) for entry in self._evaluations()]

    @property
    def validation_loss(self) -> list[float]:
        """The losses of the evaluations, in nats per token; empty without validation data."""
        return [entry["validation_loss"] for entry in self._evaluations()]

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss; None without an evaluation."""
        losses = self.validation_loss
        return self.validation_steps[losses.index(min(losses))] if losses else None

    def _training(self) -> list[Entry]:
        return [entry for entry in self.entries if "validation_loss" not in entry]

    def _evaluations(self) -> list[Entry]:
        return [entry for entry in self.entries if "validation_loss" in entry]

    def to_dict(self) -> PlainDict:
        """The lists by name, as plain values."""
        names = ("steps", "train_loss", "learning_rate", "validation_steps", "validation_loss")
        return {**{name: getattr(self, name) for name in names}, "interrupted": self.interrupted}

    def plot(self) -> "Figure":
        """Draw the losses and the learning rate; a notebook shows the figure, ``savefig`` writes it."""
        curves = Curves(self.entries)
        return loss_figure(curves, best_result(curves), SIZE)

    def __repr__(self) -> str:
        return f"History({self._summary()})"

    def _summary(self) -> str:
        training, losses = self._training(), self.validation_loss
        if not training:
            return "no step logged"
        end = ", stopped early" if self.interrupted else ""
        last = f"{training[-1]['step']:,.0f} steps{end}: training loss {self.train_loss[-1]:.4f}"
        held_out = f", validation loss {losses[-1]:.4f}" if losses else ""
        best = f", best {min(losses):.4f} at step {self.best_step:,}" if losses and min(losses) < losses[-1] else ""
        return f"{last}{held_out}{best}"

    def _repr_html_(self) -> str:
        """The summary above a table of the last evaluations."""
        evaluations = list(zip(self.validation_steps, self.validation_loss, strict=True))[-ROWS:]
        rows = "".join(f"<tr><td>{step:,}</td><td>{loss:.4f}</td></tr>" for step, loss in evaluations)
        table = f"<table><tr><th>step</th><th>validation loss</th></tr>{rows}</table>" if rows else ""
        return f"<p>{html.escape(self._summary())}</p>{table}"
