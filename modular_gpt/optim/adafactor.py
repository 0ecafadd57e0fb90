"""Adafactor, in the implementation of PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from modular_gpt.distributed.dtensor import distribute_like, full_tensor, mesh_of
from modular_gpt.optim.base import Groups, Optimizer, OptimizerConfig, with_decay


class Adafactor(Optimizer, name="adafactor"):
    """Adam with a second average factored into a row and a column per matrix (https://arxiv.org/abs/1804.04235)."""

    @dataclass
    class Config(OptimizerConfig):
        """Settings of Adafactor, whose learning rate is relative to the size of each weight.

        learning_rate: Peak learning rate, relative to the root mean square of each weight, which the schedule scales.
            With null it is 0.5 / d_model and at most 0.004.
        beta2_decay: Exponent of the second average's decay: at step t it moves by t to this power.
        clip: Largest root mean square of an update.
        """

        learning_rate: float | None = 1e-2
        weight_decay: float = 0.0
        beta2_decay: float = -0.8
        clip: float = 1.0

    config: Config

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        sharded = any(mesh_of(parameter) is not None for group in groups.values() for parameter in group)
        return [
            (ShardedAdafactor if sharded else torch.optim.Adafactor)(
                with_decay(self.config, groups),
                lr=self.learning_rate,
                beta2_decay=self.config.beta2_decay,
                d=self.config.clip,
            )
        ]

    def state_bytes(self) -> int:
        """Bytes of the state: a row and a column per matrix, full vectors, and a step number per parameter.

        It is computed by this formula, since PyTorch's step reads values, which fake tensors do not have.
        """
        count = 0
        for p in self.parameters():
            count += p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.ndim > 1 else p.numel()
        return 4 * (count + len(self.parameters()))


class ShardedAdafactor(torch.optim.Adafactor):
    """Adafactor for sharded parameters: one at a time is gathered with its gradient, updated, and sharded again.

    The state, a row and a column per matrix, is not sharded.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient. Collective: all processes must call it."""
        assert closure is None
        for group in self.param_groups:
            settings = {name: group[name] for name in ("lr", "beta2_decay", "eps", "d", "weight_decay", "maximize")}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                full = nn.Parameter(full_tensor(parameter.detach()).clone())
                full.grad = full_tensor(parameter.grad)
                adafactor = torch.optim.Adafactor([full], **settings)
                state = {key: full_tensor(value) for key, value in self.state[parameter].items()}
                adafactor.state[full] = state
                adafactor.step()
                self.state[parameter] = state
                parameter.copy_(distribute_like(full.detach(), parameter))
