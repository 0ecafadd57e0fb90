"""The report at the end of a run: a table of its results, and a command to continue with."""

import math
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.core.errors import NonFiniteError
from modular_gpt.data import PreparedData
from modular_gpt.model.loss import perplexity
from modular_gpt.training.plot import PLOT
from modular_gpt.training.recorder import duration


@dataclass(frozen=True)
class Outcome:
    """The results of a finished run.

    parameters: number of all parameters; active_parameters: of those that one token uses
    tokens: number of tokens trained on
    epochs: passes over the training data that these make; None: all data was new
    seconds: time of training, evaluation and saving
    loss: of the best weights on the validation data, in nats per token
    best_step: step of the best weights; 0 if no evaluation gave a finite loss
    whole: whether the loss is that of all validation data; otherwise of fixed windows of it
    bits_per_byte: the loss in bits per byte of text; None: the data is no text
    accuracy: fraction of the targets of the same windows that are the most likely token; None: not measured
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
        """exp(loss), the number of equally likely tokens with the same uncertainty; inf where that overflows."""
        return perplexity(self.loss)


def report_table(outcome: Outcome, data: PreparedData, directory: Path) -> str:
    """The results as a table, and the command that generates from the model if its loss is finite."""
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
    """Format bits per byte, with those of zlib for comparison."""
    return f"{value:.3f}" + (f" (zlib -9: {zlib:.3f})" if zlib else "")


def check_outcome(outcome: Outcome) -> None:
    """Raise a NonFiniteError if the loss of the final model is not finite."""
    if not math.isfinite(outcome.loss):
        raise NonFiniteError(
            f"training broke down: the model's losses are not finite (validation loss {outcome.loss} after"
            f" {outcome.steps:,} steps); lower optim.learning_rate or use a longer schedule.warmup"
        )


def files_of(directory: Path) -> list[str]:
    """The existing files of a run to name in its report; of the checkpoints the best, or else the latest."""
    names = ("metrics.jsonl", "metrics.csv", PLOT, "samples.txt", "checkpoints/best", "checkpoints/latest")
    existing = [name for name in names if (directory / name).exists()]
    return [name for name in existing if name != "checkpoints/latest" or "checkpoints/best" not in existing]
