"""A trainer that is made with a model and its data, and then told to train."""

from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Dataset

from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.core.errors import CheckpointError
from modular_gpt.data import Tokenizer
from modular_gpt.model import GPTModel
from modular_gpt.training import History, fit


class Trainer:
    """``Trainer(model=, train_dataset=, ...).train()`` is ``fit`` on a Dataset.

    history: of the last ``train``
    """

    def __init__(
        self,
        model: GPTModel,
        train_dataset: Dataset[Any],
        batch_size: int = 32,
        learning_rate: float = 3e-4,
        max_epochs: int = 10,
        val_dataset: Dataset[Any] | None = None,
        **settings: Any,
    ) -> None:
        """settings: further ones of ``fit``, such as ``weight_decay``, ``warmup_steps``, ``grad_clip``, ``device``"""
        self.model, self.train_dataset, self.val_dataset = model, train_dataset, val_dataset
        rows = len(cast(Sized, train_dataset))
        size = max(1, min(batch_size, rows))
        self.settings = {"batch_size": size, "learning_rate": learning_rate, "epochs": max_epochs, **settings}
        if val_dataset is not None:
            self.settings.setdefault("eval_interval", max(1, rows // size))  # once in an epoch
        self.history = History()

    def train(self) -> GPTModel:
        """Train for ``max_epochs``, or until Ctrl-C; returns the model, in evaluation mode.

        Raises:
            ConfigError, DataError: as ``fit``.
        """
        self.history = fit(self.model, self.train_dataset, validation=self.val_dataset, **self.settings)
        return self.model

    def save_checkpoint(self, path: str | Path, tokenizer: Tokenizer | None = None) -> Path:
        """Write the model, and a tokenizer if one is given, into a folder that ``load_model`` opens."""
        return save_checkpoint(path, self.model, tokenizer, meta={"history": self.history.to_dict()})

    def load_checkpoint(self, path: str | Path) -> GPTModel:
        """Give the model the weights of a checkpoint.

        Raises:
            CheckpointError: there is none, or it is of a model of another shape.
        """
        loaded = load_checkpoint(path)
        if loaded.model.config != self.model.config:
            raise CheckpointError(f"'{path}' is of a model with other settings: use modular_gpt.load_model('{path}')")
        self.model.load_state_dict(loaded.model.state_dict())
        return self.model
