"""Compose, train and compare GPT architectures from proven parts."""

from modular_gpt.config import GPTConfig, LayersConfig
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError, UserError
from modular_gpt.model import GPTModel, LossOutput

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GPTConfig",
    "GPTModel",
    "LayersConfig",
    "LossOutput",
    "UserError",
    "__version__",
]
