"""The report at the end of a run: a table, and the command to type next."""

import math
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.core.errors import NonFiniteError
from modular_gpt.data import PreparedData
from modular_gpt.training.plot import PLOT
from modular_gpt.training.recorder import duration


@dataclass(frozen=True)
class Outcome:
    """The numbers of a finished run.

    parameters: all; active_parameters: those that one token uses
    tokens: trained on; epochs: passes over the training data that these make, None: all data was new
    seconds: of training, evaluation and saving
    loss: of the best weights on the validation data, in nats per token; best_step: of these weights, 0 if no
        evaluation gave a finite loss
    whole: the loss is of all validation data, else of fixed windows of it
    bits_per_byte: the same for a byte of text, None: the data is no text
    accuracy: share of the targets of the same windows that are the most likely token, None: it is not measured
    """

    parameters: int
    active_parameters: int
    steps: int
    tokens: int
    epochs: float | None
    loss: float
    best_step: int
    whole: bool
    bits_per_byte: float | None
    seconds: float
    accuracy: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss): a model is as unsure as between this many equally likely tokens; inf where that overflows."""
        return math.exp(self.loss) if not self.loss >= 700.0 else math.inf


def report_table(outcome: Outcome, data: PreparedData, directory: Path) -> str:
    """The numbers, one a line, and the next command if there is a model to use."""
    active = f" ({outcome.active_parameters:,} active)" if outcome.active_parameters != outcome.parameters else ""
    zlib = data.zlib_bits_per_byte
    text = data.everything if outcome.whole else "fixed windows"
    epochs = "" if outcome.epochs is None else f" ({outcome.epochs:.2f} epochs)"
    rows = [
        ("parameters", f"{outcome.parameters:,}{active}"),
        ("tokens seen", f"{outcome.tokens:,} in {outcome.steps:,} steps{epochs}"),
        (
            "validation loss",
            f"{outcome.loss:.4f} at step {outcome.best_step:,}, on {text}"
            if outcome.best_step
            else f"not finite at any evaluation ({outcome.loss:.4f} at the end)",
        ),
        *([("perplexity", f"{outcome.perplexity:.3f} per token")] if data.unit == "targets" else []),
        *([] if outcome.accuracy is None else [("accuracy", f"{outcome.accuracy:.2%} of the {data.unit}")]),
        *([] if outcome.bits_per_byte is None else [("bits per byte", bits_per_byte(outcome.bits_per_byte, zlib))]),
        ("wall time", f"{duration(outcome.seconds)}, {outcome.tokens / max(outcome.seconds, 1e-9):,.0f} tokens/s"),
        ("files", f"{directory}: {', '.join(files_of(directory))}"),
    ]
    width = max(len(name) for name, _ in rows)
    rule = "-" * (width + 50)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    following = [f"Next: mgpt-generate checkpoint={directory}"] if math.isfinite(outcome.loss) else []
    return "\n".join([rule, *lines, rule, *following])


def bits_per_byte(value: float, zlib: float | None) -> str:
    """Bits per byte, beside those of a general compressor."""
    return f"{value:.3f}" + (f" (zlib -9: {zlib:.3f})" if zlib else "")


def check_outcome(outcome: Outcome) -> None:
    """Raise a NonFiniteError if the model that a run ends with has no finite loss: nothing can be done with it."""
    if not math.isfinite(outcome.loss):
        raise NonFiniteError(
            f"training broke down: the model's losses are not finite (validation loss {outcome.loss} after"
            f" {outcome.steps:,} steps); lower optim.learning_rate or use a longer schedule.warmup"
        )


def files_of(directory: Path) -> list[str]:
    """The files of a run that people look at, those that are there."""
    names = ("metrics.jsonl", "metrics.csv", PLOT, "samples.txt", "checkpoints/best", "checkpoints/latest")
    there = [name for name in names if (directory / name).exists()]
    return [name for name in there if name != "checkpoints/latest" or "checkpoints/best" not in there]
