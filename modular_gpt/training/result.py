"""The result of a training run: its report, and its model, tokenizer and metrics, read from the run's directory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from modular_gpt.checkpoint import LoadedModel, load_model
from modular_gpt.core.errors import ConfigError
from modular_gpt.data import Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.training.history import History
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.report import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    directory: the run's directory; after a dry run, the directory of all runs
    signal: number of the signal that ended the run early, so that it can be resumed; None: it was not ended early
    outcome: the results in its report; None for a run that ended early, and for a dry run
    table: the report as text; None for a run that ended early; the estimate for a dry run
    """

    directory: Path
    signal: int | None
    outcome: Outcome | None
    table: str | None

    @property
    def model(self) -> GPTModel:
        """The model of the best checkpoint, in evaluation mode and with its tokenizer, read at the first use.

        Raises:
            ConfigError: it was a dry run.
            CheckpointError: the run's directory is gone or damaged.
        """
        return self._loaded.model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the run. Raises as ``model`` does."""
        return self._loaded.tokenizer

    @cached_property
    def _loaded(self) -> LoadedModel:
        self._check_trained("model")
        return load_model(self.directory)

    @cached_property
    def history(self) -> History:
        """The metrics of the run, as its metrics.jsonl has them. Raises a ConfigError after a dry run."""
        self._check_trained("history")
        return History(read_metrics(self.directory), interrupted=self.signal is not None)

    def plot(self) -> "Figure":
        """Draw the losses and the learning rate, as ``History.plot`` does."""
        return self.history.plot()

    def _check_trained(self, name: str) -> None:
        if self.outcome is None and self.signal is None:
            raise ConfigError(f"a dry run trains nothing and has no {name}: leave out dry_run")

    def __repr__(self) -> str:
        if self.outcome is None:
            end = "a dry run" if self.signal is None else f"stopped by signal {self.signal}"
        else:
            end = f"validation loss {self.outcome.loss:.4f} after {self.outcome.steps:,} steps"
        return f"RunResult({str(self.directory)!r}: {end})"
