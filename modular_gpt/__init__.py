"""Compose, train and compare GPT architectures from proven parts."""

from typing import TYPE_CHECKING

from modular_gpt.core.errors import CheckpointError, ConfigError, DataError, UserError
from modular_gpt.model import GPTModel
from modular_gpt.model.config import GPTConfig, LayersConfig
from modular_gpt.model.loss import LossConfig, LossOutput

LossSettings = LossConfig  # the name of before

if TYPE_CHECKING:
    from modular_gpt.training.config import RunConfig

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GPTConfig",
    "GPTModel",
    "LayersConfig",
    "LossConfig",
    "LossOutput",
    "LossSettings",
    "UserError",
    "__version__",
    "compose",
]


def compose(*overrides: str, config_dir: str | None = None) -> "RunConfig":
    """The RunConfig that ``mgpt-train`` makes of the same words: ``compose("attention=gqa", "trainer.max_steps=100")``.

    Train it with ``modular_gpt.training.run.train(config)``. config_dir: a folder with yaml files of one's own

    Raises:
        ConfigError: a word is no setting, or what they say together cannot work.
    """
    from modular_gpt.cli.composition import train_config as _run  # only here: it brings Hydra

    return _run.compose(*overrides, config_dir=config_dir)
