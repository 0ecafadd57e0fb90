"""Muon: momentum that is orthogonalised by a Newton-Schulz iteration before each update.

https://kellerjordan.github.io/posts/muon/, with the scaling of https://arxiv.org/abs/2502.16982 as an option. Update
and state are those of torch.optim.Muon, but the iteration runs on a batch of all matrices of one shape, or of its
transpose, which halves the time for many small matrices on a CPU.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modular_gpt.core.plain_types import PlainDict
from modular_gpt.core.validation import fraction, one_of, positive
from modular_gpt.distributed.dtensor import distribute_like, full_tensor
from modular_gpt.optim.adamw import AdamW, adamw
from modular_gpt.optim.base import Groups, Optimizer

MOMENTUM = "momentum_buffer"
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial, chosen for a steep slope at zero
EPS = 1e-7  # lower bound of the norm by which a matrix is divided

SCALINGS: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: max(1.0, rows / columns) ** 0.5,
    "match_rms_adamw": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}


class Muon(Optimizer, name="muon"):
    """Orthogonalised momentum for matrices, AdamW for the rest (https://arxiv.org/abs/2502.16982)."""

    @dataclass
    class Config(AdamW.Config):
        """Settings of Muon for matrices, and of AdamW for all other parameters.

        AdamW also updates stacks of matrices, such as those of experts.

        learning_rate: Peak learning rate, which the schedule scales. By default (null) 1 / d_model and at most 0.008:
            0.0078 at a width of 128, 0.0013 at 768.
        momentum: Momentum of the matrices' gradients.
        nesterov: Use Nesterov momentum.
        ns_steps: Number of Newton-Schulz iterations that orthogonalise an update.
        scaling: Scale of an orthogonalised update. match_rms_adamw matches the root mean square of AdamW's updates, so
            that AdamW's learning rates can be used; original multiplies by sqrt(rows / columns) if that exceeds 1, for
            which a learning rate of 0.02 is usual.
        adamw_learning_rate: Learning rate of embeddings, norms and biases. By default (null) the same as learning_rate.
        head: Optimizer of an untied head, muon or adamw.
        beta1: AdamW's decay rate of the average of the gradient, in [0, 1).
        beta2: AdamW's decay rate of the average of the squared gradient, in [0, 1).
        eps: Constant added to the square root of AdamW's second average.
        """

        momentum: float = 0.95
        nesterov: bool = True
        ns_steps: int = 5
        scaling: str = "match_rms_adamw"
        adamw_learning_rate: float | None = None
        head: str = "muon"

        def __post_init__(self) -> None:
            super().__post_init__()
            positive("optim", ns_steps=self.ns_steps, adamw_learning_rate=self.adamw_learning_rate)
            fraction("optim", momentum=self.momentum)
            one_of(self.scaling, tuple(SCALINGS), "optim.scaling")
            one_of(self.head, ("muon", "adamw"), "optim.head")

        def default_learning_rate(self, d_model: int) -> float:
            return min(1 / d_model, 0.008)

    config: Config

    def build(self, groups: Groups) -> list[torch.optim.Optimizer]:
        config = self.config
        matrices = [p for p in groups["matrices"] if p.ndim == 2 and (config.head == "muon" or p is not self.head)]
        with_muon = set(matrices)
        others = {**groups, "matrices": [p for p in groups["matrices"] if p not in with_muon]}
        optimizers: list[torch.optim.Optimizer] = []
        if matrices:  # with frozen parameters or adapters, either optimizer may have no parameters
            muon = OrthogonalMomentum(
                matrices,
                learning_rate=self.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
                nesterov=config.nesterov,
                ns_steps=config.ns_steps,
                scaling=config.scaling,
            )
            optimizers.append(muon)
        if any(others.values()):
            optimizers.append(adamw(config, others, config.adamw_learning_rate or self.learning_rate))
        return optimizers


class OrthogonalMomentum(torch.optim.Optimizer):
    """Muon for matrices, without AdamW for other parameters."""

    def __init__(
        self,
        matrices: Iterable[nn.Parameter] | Iterable[PlainDict],
        learning_rate: float,
        weight_decay: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        scaling: str,
    ) -> None:
        """matrices: parameters (rows, columns), or groups of them; for the others see ``Muon.Config``"""
        settings = {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        super().__init__(matrices, {**settings, "ns_steps": ns_steps, "scaling": scaling})

    @torch.no_grad()
    def step(self, closure: Callable[[], object] | None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if not matrices:
                continue
            updates = orthogonalise(self.momentum(matrices, group), group["ns_steps"])
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            scale = SCALINGS[group["scaling"]]
            torch._foreach_mul_(updates, [-group["lr"] * scale(*matrix.shape) for matrix in matrices])
            torch._foreach_add_(matrices, updates)

    def momentum(self, matrices: list[Tensor], group: PlainDict) -> list[Tensor]:
        """Update the momentum with the gradients; returns it, or with Nesterov its average with the gradients."""
        for matrix in matrices:
            if MOMENTUM not in self.state[matrix]:
                self.state[matrix][MOMENTUM] = torch.zeros_like(matrix)
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        momentum = [self.state[matrix][MOMENTUM] for matrix in matrices]
        torch._foreach_lerp_(momentum, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, momentum, group["momentum"])) if group["nesterov"] else momentum


def orthogonalise(matrices: list[Tensor], steps: int) -> list[Tensor]:
    """Matrices with the same singular vectors, and singular values between about 0.7 and 1.2 after five ``steps``.

    Sharded matrices are gathered, and the results are sharded like them. Collective if there are any.
    """
    batches: dict[torch.Size, list[int]] = {}
    wide = [matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT for matrix in matrices]
    for index, matrix in enumerate(wide):
        batches.setdefault(matrix.shape, []).append(index)
    results: dict[int, Tensor] = {}
    for indices in batches.values():
        batch = torch.stack([full_tensor(wide[index]).bfloat16() for index in indices])
        results.update(zip(indices, newton_schulz(batch, steps).unbind(), strict=True))
    return [
        distribute_like((results[index] if wide[index] is matrix else results[index].mT).to(matrix.dtype), matrix)
        for index, matrix in enumerate(matrices)
    ]


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """Move the singular values of matrices (n, rows, columns), with rows <= columns, towards 1."""
    a, b, c = COEFFICIENTS
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
