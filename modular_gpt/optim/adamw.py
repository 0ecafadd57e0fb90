"""AdamW, which other optimizers also use for some of their parameters."""

from dataclasses import dataclass

import torch

from modular_gpt.core.validation import fraction
from modular_gpt.optim.base import Groups, Optimizer, OptimizerConfig, with_decay


class AdamW(Optimizer, name="adamw"):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

    @dataclass
    class Config(OptimizerConfig):
        """Settings of AdamW.

        beta1: Decay rate of the average of the gradient, in [0, 1).
        beta2: Decay rate of the average of the squared gradient, in [0, 1).
        eps: Constant added to the square root of the second average.
        """

        beta1: float = 0.9
        beta2: float = 0.99
        eps: float = 1e-8

        def __post_init__(self) -> None:
            super().__post_init__()
            fraction("optim", beta1=self.beta1, beta2=self.beta2)

    config: Config

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        return [adamw(self.config, groups, self.learning_rate)]


def adamw(config: AdamW.Config, groups: Groups, learning_rate: float) -> torch.optim.AdamW:
    """PyTorch's AdamW for groups of parameters, in the fused implementation if all are on CPUs or CUDA devices."""
    fused = all(p.device.type in ("cpu", "cuda") for group in groups.values() for p in group)
    return torch.optim.AdamW(
        with_decay(config, groups),
        lr=learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=fused,
    )
