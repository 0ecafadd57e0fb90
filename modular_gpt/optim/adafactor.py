"""Adafactor, by PyTorch."""

from dataclasses import dataclass

import torch

from modular_gpt.optim.base import Groups, Optimizer, OptimizerConfig, with_decay


class Adafactor(Optimizer, name="adafactor"):
    """Adam with the second average kept as a row and a column of each matrix (https://arxiv.org/abs/1804.04235)."""

    supports_sharding = False

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

    config: Config

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adafactor(
                with_decay(self.config, groups),
                lr=self.learning_rate,
                beta2_decay=self.config.beta2_decay,
                d=self.config.clip,
            )
        ]

    def state_bytes(self) -> int:
        """A row and a column of each matrix, or a whole vector, and the step's number; a step needs real values."""
        count = 0
        for p in self.parameters():
            count += p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.ndim > 1 else p.numel()
        return 4 * (count + len(self.parameters()))
