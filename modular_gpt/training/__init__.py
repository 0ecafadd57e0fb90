"""Training: from a RunConfig to a run directory with checkpoints, metrics and a report."""

from modular_gpt.training.config import RunConfig, TrainerConfig
from modular_gpt.training.run import RunResult, load_config, train

__all__ = ["RunConfig", "RunResult", "TrainerConfig", "load_config", "train"]
