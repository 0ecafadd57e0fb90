"""``fit`` as a Trainer class, with the arguments of other code bases."""

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
    """Trains a model on a Dataset with ``fit``: ``Trainer(model=, train_dataset=, ...).train()``.

    history: metrics of the last call of ``train``
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
        """settings: further settings of ``fit``, such as ``weight_decay``, ``warmup_steps`` and ``grad_clip``"""
        self.model, self.train_dataset, self.val_dataset = model, train_dataset, val_dataset
        rows = len(cast(Sized, train_dataset))
        size = max(1, min(batch_size, rows))
        self.settings = {"batch_size": size, "learning_rate": learning_rate, "epochs": max_epochs, **settings}
        if val_dataset is not None:
            self.settings.setdefault("eval_interval", max(1, rows // size))  # one evaluation per epoch
        self.history = History()

    def train(self) -> GPTModel:
        """Train for ``max_epochs``, or until Ctrl-C; returns the model, in evaluation mode.

        Raises:
            ConfigError, DataError: as ``fit``.
        """
        self.history = fit(self.model, self.train_dataset, validation=self.val_dataset, **self.settings)
        return self.model

    def save_checkpoint(self, path: str | Path, tokenizer: Tokenizer | None = None) -> Path:
        """Write the model, and optionally its tokenizer, into a folder that ``load_model`` opens; returns the folder.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        return save_checkpoint(path, self.model, tokenizer, meta={"history": self.history.to_dict()})

    def load_checkpoint(self, path: str | Path) -> GPTModel:
        """Load the weights of a checkpoint into the model, and return it.

        Raises:
            CheckpointError: there is no checkpoint, or its model has other settings.
        """
        loaded = load_checkpoint(path)
        if loaded.model.config != self.model.config:
            raise CheckpointError(f"'{path}' has a model with other settings: use modular_gpt.load_model('{path}')")
        self.model.load_state_dict(loaded.model.state_dict())
        return self.model
