"""What a run says at its end: a table, and what to type next."""

import math
from dataclasses import dataclass
from pathlib import Path

from modular_gpt.data import PreparedData
from modular_gpt.training.plot import PLOT
from modular_gpt.training.recorder import duration


@dataclass(frozen=True)
class Outcome:
    """The figures of a finished run.

    parameters: all; active_parameters: that one token uses
    tokens: trained on; epochs: how often that is the whole text; seconds: of training, evaluation and saving
    loss: of the best weights on the validation text, nats per token; best_step: when they were reached
    whole: the loss is of the whole validation text, else of fixed batches of it
    """

    parameters: int
    active_parameters: int
    steps: int
    tokens: int
    epochs: float
    loss: float
    best_step: int
    whole: bool
    bits_per_byte: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss): as unsure as between so many equally likely tokens."""
        return math.exp(min(self.loss, 700.0))


def report_table(outcome: Outcome, data: PreparedData, directory: Path) -> str:
    """The figures, one a line, and the next commands."""
    active = f" ({outcome.active_parameters:,} active)" if outcome.active_parameters != outcome.parameters else ""
    zlib = data.validation.zlib_bits_per_byte
    rows = [
        ("parameters", f"{outcome.parameters:,}{active}"),
        ("tokens seen", f"{outcome.tokens:,} in {outcome.steps:,} steps ({outcome.epochs:.2f} epochs)"),
        (
            "validation loss",
            f"{outcome.loss:.4f} at step {outcome.best_step:,}, on "
            + ("the whole validation text" if outcome.whole else "fixed batches"),
        ),
        ("perplexity", f"{outcome.perplexity:.3f} per token"),
        ("bits per byte", f"{outcome.bits_per_byte:.3f}" + (f" (zlib -9: {zlib:.3f})" if zlib else "")),
        ("wall time", f"{duration(outcome.seconds)}, {outcome.tokens / max(outcome.seconds, 1e-9):,.0f} tokens/s"),
        ("files", f"{directory}: metrics.jsonl, metrics.csv, {PLOT}, samples.txt, checkpoints/best"),
    ]
    width = max(len(name) for name, _ in rows)
    rule = "-" * (width + 50)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([rule, *lines, rule, f"Next: mgpt-generate checkpoint={directory}"])
