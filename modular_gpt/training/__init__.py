"""Training: from a RunConfig to a run directory with checkpoints, figures and a report."""

from modular_gpt.training.config import RunConfig, TrainerConfig

__all__ = ["RunConfig", "TrainerConfig"]
