"""Compose, train, compare and inspect GPT architectures."""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modular_gpt._version import __version__
from modular_gpt.core import former_modules
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError, UserError

if TYPE_CHECKING:
    from modular_gpt.chat import Chat
    from modular_gpt.checkpoint.resolve import load_model
    from modular_gpt.comparison import compare
    from modular_gpt.generation import generate
    from modular_gpt.inspection import ablate_heads, capture, head_scores, logit_lens
    from modular_gpt.model import GPTModel
    from modular_gpt.model.config import GPTConfig, LayersConfig
    from modular_gpt.model.loss import LossConfig, LossOutput
    from modular_gpt.model.loss import LossConfig as LossSettings  # the old name
    from modular_gpt.training.config import RunConfig
    from modular_gpt.training.fit import fit
    from modular_gpt.training.history import History
    from modular_gpt.training.run import train

former_modules.install()

# Public names that are imported at first use, because their modules import torch: name -> module and name there.
_LAZY = {
    "Chat": ("modular_gpt.chat", "Chat"),
    "GPTModel": ("modular_gpt.model", "GPTModel"),
    "GPTConfig": ("modular_gpt.model.config", "GPTConfig"),
    "LayersConfig": ("modular_gpt.model.config", "LayersConfig"),
    "History": ("modular_gpt.training.history", "History"),
    "LossConfig": ("modular_gpt.model.loss", "LossConfig"),
    "LossOutput": ("modular_gpt.model.loss", "LossOutput"),
    "LossSettings": ("modular_gpt.model.loss", "LossConfig"),
    "ablate_heads": ("modular_gpt.inspection", "ablate_heads"),
    "capture": ("modular_gpt.inspection", "capture"),
    "compare": ("modular_gpt.comparison", "compare"),
    "fit": ("modular_gpt.training.fit", "fit"),
    "generate": ("modular_gpt.generation", "generate"),
    "head_scores": ("modular_gpt.inspection", "head_scores"),
    "logit_lens": ("modular_gpt.inspection", "logit_lens"),
    "load_model": ("modular_gpt.checkpoint.resolve", "load_model"),
    "train": ("modular_gpt.training.run", "train"),
}

__all__ = [
    "Chat",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GPTConfig",
    "GPTModel",
    "History",
    "LayersConfig",
    "LossConfig",
    "LossOutput",
    "LossSettings",
    "UserError",
    "__version__",
    "ablate_heads",
    "capture",
    "compare",
    "compose",
    "fit",
    "generate",
    "head_scores",
    "load_model",
    "logit_lens",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        value = getattr(importlib.import_module(module), attribute)
    elif name in ("model", "nn"):  # packages that `import modular_gpt` has always brought
        value = importlib.import_module(f"modular_gpt.{name}")
    else:
        raise AttributeError(f"module 'modular_gpt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def compose(*overrides: str | Sequence[str], config_dir: str | None = None) -> "RunConfig":
    """The RunConfig that ``mgpt-train`` makes of the same settings: ``compose("attention=gqa", "seed=1")``.

    Train it with ``modular_gpt.train(config)``.

    Args:
        overrides: settings as on the command line, or one list of them
        config_dir: a folder with further yaml files

    Raises:
        ConfigError: a setting does not exist, or the settings cannot work together.
    """
    from modular_gpt.cli.composition import train_config  # only here: it imports Hydra

    listed = len(overrides) == 1 and isinstance(overrides[0], (list, tuple))
    settings = [str(setting) for setting in (overrides[0] if listed else overrides) if isinstance(setting, str)]
    if len(settings) < len(overrides[0] if listed else overrides):
        raise ConfigError(f"compose takes settings as typed, such as 'attention=gqa', got {overrides!r}")
    return train_config.compose(*settings, config_dir=config_dir)
