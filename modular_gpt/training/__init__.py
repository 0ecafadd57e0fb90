"""Training: from a RunConfig to a run directory with checkpoints, metrics and a report."""

from modular_gpt.training.config import RunConfig, TrainerConfig
from modular_gpt.training.fit import fit
from modular_gpt.training.history import History
from modular_gpt.training.result import RunResult
from modular_gpt.training.run import load_config, train

__all__ = ["History", "RunConfig", "RunResult", "TrainerConfig", "fit", "load_config", "train"]
