"""Adafactor, by PyTorch."""

from dataclasses import dataclass

import torch

from modular_gpt.optim.base import Groups, Optimizer, OptimizerConfig, with_decay


class Adafactor(Optimizer, name="adafactor"):
    """Adam with the second average kept as a row and a column of each matrix (https://arxiv.org/abs/1804.04235)."""

    takes_parts = False

    @dataclass
    class Config(OptimizerConfig):
        """Settings of Adafactor, whose learning rate is relative to the size of each weight.

        beta2_decay: Exponent of the second average's decay: at step t it moves by t to this power.
        clip: Largest root mean square of an update.
        """

        learning_rate: float | None = 1e-2
        weight_decay: float = 0.0
        beta2_decay: float = -0.8
        clip: float = 1.0

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        config = self.config
        settings = {"lr": self.learning_rate, "beta2_decay": config.beta2_decay, "d": config.clip}
        return [torch.optim.Adafactor(with_decay(config, groups), **settings)]

    def state_bytes(self) -> int:
        """A row and a column of each matrix, and all of a vector, besides the number of the step; its own step needs
        the parameters' content."""
        count = 0
        for p in self.parameters():
            count += p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.ndim > 1 else p.numel()
        return 4 * (count + len(self.parameters()))
