"""Muon: momentum whose singular values are made nearly equal before it becomes an update.

https://kellerjordan.github.io/posts/muon/, with the scaling of https://arxiv.org/abs/2502.16982 as a choice. It does
what torch.optim.Muon does and keeps its state by the same names, but takes all matrices of one shape, and those of the
shape turned around, through the iteration together: many small matrices then cost a CPU about half the time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from modular_gpt.core.validation import one_of, positive
from modular_gpt.distributed.dtensor import distribute_like, full_tensor
from modular_gpt.optim.adamw import adamw
from modular_gpt.optim.base import Groups, Optimizer, OptimizerConfig, check_averages

MOMENTUM = "momentum_buffer"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, steep at zero
EPS = 1e-7  # of the norm that a matrix is divided by

SCALINGS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}


class Muon(Optimizer, name="muon"):
    """Orthogonalised momentum for matrices, AdamW for the rest (https://arxiv.org/abs/2502.16982)."""

    @dataclass
    class Config(OptimizerConfig):
        """Settings of Muon for matrices, and of AdamW for all other parameters.

        Stacks of matrices, as in a mixture of experts, are updated by AdamW too.

        momentum: Momentum of the matrices' gradients.
        nesterov: Use Nesterov momentum.
        ns_steps: Number of Newton-Schulz iterations that orthogonalise an update.
        scaling: Size of an update: match_rms_adamw makes it as large as AdamW's, so that AdamW's learning rates fit;
            original leaves it orthogonal and multiplies it by sqrt(rows / columns) where there are more rows (a
            learning rate of 0.02 is usual).
        adamw_learning_rate: Learning rate of embeddings, norms and biases. By default (null) the same as learning_rate.
        head: Optimizer of an untied head, muon or adamw.
        beta1: AdamW's decay rate of the average of the gradient, in [0, 1).
        beta2: AdamW's decay rate of the average of the squared gradient, in [0, 1).
        eps: Added to the square root of AdamW's second average.
        """

        momentum: float = 0.95
        nesterov: bool = True
        ns_steps: int = 5
        scaling: str = "match_rms_adamw"
        adamw_learning_rate: float | None = None
        head: str = "muon"
        beta1: float = 0.9
        beta2: float = 0.99
        eps: float = 1e-8

        def __post_init__(self) -> None:
            super().__post_init__()
            positive("optim", ns_steps=self.ns_steps, adamw_learning_rate=self.adamw_learning_rate)
            check_averages(momentum=self.momentum, beta1=self.beta1, beta2=self.beta2)
            one_of(self.scaling, tuple(SCALINGS), "optim.scaling")
            one_of(self.head, ("muon", "adamw"), "optim.head")

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        config = self.config
        by_muon = {p for p in groups["matrices"] if p.ndim == 2 and (config.head == "muon" or p is not self.head)}
        rest = {**groups, "matrices": [p for p in groups["matrices"] if p not in by_muon]}
        parts: list[torch.optim.Optimizer] = []
        if by_muon:  # of frozen parts, and of adapters, one of the two may have nothing to do
            muon = OrthogonalMomentum(
                [p for p in groups["matrices"] if p in by_muon],
                learning_rate=self.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                ns_steps=config.ns_steps,
                scaling=config.scaling,
            )
            parts.append(muon)
        if any(rest.values()):
            parts.append(adamw(config, rest, config.adamw_learning_rate or self.learning_rate))
        return parts


class OrthogonalMomentum(torch.optim.Optimizer):
    """Muon for parameters that are matrices, without any other optimizer for the rest."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        learning_rate: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        scaling: str,
    ) -> None:
        """Settings as in ``optim.Muon.Config``; ``matrices``: (rows, columns) each, or groups of them."""
        settings = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(matrices, {**settings, "ns_steps": ns_steps, "scaling": scaling})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            updates = orthogonalised(self.averages(matrices, group), group["ns_steps"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            scale = SCALINGS[group["scaling"]]
            torch._foreach_mul_(updates, [-group["lr"] * scale(*matrix.shape) for matrix in matrices])
            torch._foreach_add_(matrices, updates)

    def averages(self, matrices: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Take the gradients into the momentum; what it is then, or with Nesterov, what it would be one step on."""
        for matrix in matrices:
            if MOMENTUM not in self.state[matrix]:
                self.state[matrix][MOMENTUM] = torch.zeros_like(matrix)
        gradients = [cast(Tensor, matrix.grad) for matrix in matrices]
        averages = [self.state[matrix][MOMENTUM] for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, averages, group["momentum"])) if group["nesterov"] else averages


def orthogonalised(matrices: list[Tensor], steps: int) -> list[Tensor]:
    """New matrices of the same shapes and singular vectors, with singular values between about 0.7 and 1.2."""
    stacks: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        stacks.setdefault((min(rows, columns), max(rows, columns)), []).append(index)
    done: dict[int, Tensor] = {}
    for indices in stacks.values():
        stack = torch.stack([_wide(full_tensor(matrices[index])).bfloat16() for index in indices])
        done.update(zip(indices, newton_schulz(stack, steps).unbind(), strict=True))
    return [
        distribute_like(
            (done[index] if matrix.shape[0] <= matrix.shape[1] else done[index].mT).to(matrix.dtype), matrix
        )
        for index, matrix in enumerate(matrices)
    ]


def _wide(matrix: Tensor) -> Tensor:
    """With its longer side as columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """(n, rows, columns), rows <= columns -> the same shape, singular values nearly 1."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
