"""Optimizers, one file each, and learning-rate schedules.

Importing this package imports all files of its folder, which registers their components.
"""

from modular_gpt.core.registry import ComponentLike, decode, import_folder
from modular_gpt.model import GPTModel
from modular_gpt.optim.base import Optimizer, OptimizerConfig, peak_learning_rate, with_former_rate
from modular_gpt.optim.schedules import Schedule, build_schedule

__all__ = [
    "Optimizer",
    "OptimizerConfig",
    "Schedule",
    "build_optimizer",
    "build_schedule",
    "peak_learning_rate",
    "with_former_rate",
]

import_folder(__name__, __path__)


def build_optimizer(config: ComponentLike, model: GPTModel) -> Optimizer:
    """Build an optimizer of a model's trained parameters from its name, a mapping with a name, or a Config.

    Raises:
        ConfigError: the name or a setting is unknown.
    """
    optimizer: Optimizer = decode("optim", config).build(model)
    return optimizer
