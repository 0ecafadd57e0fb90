"""Training objectives, such as cross-entropy and DPO: one row of ``OBJECTIVES`` each."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.targets import IGNORED
from modular_gpt.data import Batch, PreparedData
from modular_gpt.data.prepared_pairs import PreparedPairs
from modular_gpt.model import GPTModel
from modular_gpt.model.loss import LossConfig, LossOutput
from modular_gpt.training.config import TrainerConfig
from modular_gpt.training.forward import Forward
from modular_gpt.training.lora import Adapters


@dataclass(frozen=True)
class Reference:
    """The reference model of DPO.

    model: a frozen copy; None: the trained model, inside ``switched_off``
    switched_off: context manager in which the trained model computes without its adapters
    fingerprint: hash of the frozen copy's weights; empty without a copy
    """

    model: GPTModel | None
    switched_off: Callable[[], AbstractContextManager[None]] = nullcontext
    fingerprint: str = ""

    @classmethod
    def frozen(cls, model: GPTModel) -> "Reference":
        """A frozen copy of ``model``, in evaluation mode."""
        copied = deepcopy(model).requires_grad_(False).eval()
        digest = hashlib.sha256()
        for tensor in copied.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return cls(copied, fingerprint=digest.hexdigest()[:16])

    @torch.no_grad()
    def logprobs(self, forward: Forward, ids: Tensor, targets: Tensor) -> Tensor:
        """(M,) as ``row_logprobs`` of the reference, without dropout."""
        if self.model is not None:
            return row_logprobs(forward.logits(ids, self.model), targets)
        training = forward.model.training
        forward.model.eval()
        try:
            with self.switched_off():
                return row_logprobs(forward.logits(ids, forward.model), targets)
        finally:
            forward.model.train(training)


@dataclass(frozen=True)
class ObjectiveConfig:
    """The settings of an objective.

    loss: terms added to the cross-entropy; beta: the beta of DPO; reference: the reference model of DPO
    """

    loss: LossConfig
    beta: float
    reference: Reference | None = None


@dataclass(frozen=True)
class Objective:
    """An objective of training.

    data: the class of data that it needs; None: any data that no other objective needs
    needs: the setting that gives such data, for messages
    count: the number of targets, or for DPO of pairs, that the loss is a mean over
    compute: the mean loss of a batch; with ``accuracy`` for evaluations
    compiles: whether its forward pass may be compiled
    """

    data: type[PreparedData] | None
    needs: str
    count: Callable[[Tensor], int]
    compute: Callable[[Forward, Batch, ObjectiveConfig], LossOutput]
    compiles: bool = True


def count_targets(targets: Tensor) -> int:
    """The number of targets that are not ``IGNORED``."""
    return int((targets != IGNORED).sum())


def count_pairs(targets: Tensor) -> int:
    """The number of pairs in targets (B, 2, T) that have a target which is not ``IGNORED``."""
    return int((targets != IGNORED).flatten(1).any(1).sum())


def cross_entropy(forward: Forward, batch: Batch, config: ObjectiveConfig) -> LossOutput:
    """The cross-entropy of the targets, with the terms of ``config.loss``."""
    ids, targets, *documents = batch
    return forward(ids, targets, config.loss, *documents)


def row_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (M, T, V), targets (M, T) -> (M,): the log-probability of the targets of each row."""
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view(targets.shape).sum(1)


def dpo_losses(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities (B, 2) of chosen and rejected answers -> losses and margins of the implied rewards, (B,).

    Direct preference optimisation, https://arxiv.org/abs/2305.18290, equation 7.
    """
    rewards = beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    return -F.logsigmoid(margins), margins


def dpo(forward: Forward, batch: Batch, config: ObjectiveConfig) -> LossOutput:
    """The mean DPO loss of pairs (B, 2, T); its accuracy is the fraction whose chosen answer has the higher reward."""
    assert config.reference is not None
    ids, targets = (tensor.to(forward.device) for tensor in batch)
    rows, row_targets = ids.flatten(0, 1), targets.flatten(0, 1)
    reference = config.reference.logprobs(forward, rows, row_targets)
    policy = row_logprobs(forward.logits(rows), row_targets)
    losses, margins = dpo_losses(policy.view(-1, 2), reference.view(-1, 2), config.beta)
    has_targets = (targets != IGNORED).flatten(1).any(1)
    count = has_targets.sum().clamp(min=1)
    loss = (losses * has_targets).sum() / count
    accuracy = ((margins > 0) & has_targets).sum() / count
    margin = (margins * has_targets).sum().detach() / count
    return LossOutput(loss, {"dpo": loss, "reward_margin": margin}, None, accuracy)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": Objective(None, "text, records or other data", count_targets, cross_entropy),
    "dpo": Objective(PreparedPairs, "data=preferences", count_pairs, dpo, compiles=False),
}


def check_objective(name: str, data: PreparedData) -> Objective:
    """The objective of that name. Raises a ConfigError if it cannot be trained on this data."""
    for other, objective in OBJECTIVES.items():
        if objective.data is not None and isinstance(data, objective.data) and other != name:
            raise ConfigError(f"{objective.needs} is for trainer.objective={other}, not {name}: set one of the two")
    chosen = OBJECTIVES[name]
    if chosen.data is not None and not isinstance(data, chosen.data):
        raise ConfigError(f"trainer.objective={name} needs {chosen.needs}: set one of the two")
    return chosen


class Loss:
    """An objective with its settings and the forward pass that it calls, for training and evaluation."""

    def __init__(
        self, objective: Objective, config: TrainerConfig, forward: Forward, adapters: Adapters | None
    ) -> None:
        """adapters: those of the model, which without them is the reference of DPO"""
        self.objective, self.forward = objective, forward
        reference = None if adapters is None else Reference(None, adapters.switched_off)
        self.config = ObjectiveConfig(config.loss, config.beta, reference)
        self.name = next(name for name, known in OBJECTIVES.items() if known is objective)

    def use_reference(self, reference: Reference | None) -> None:
        """Set the reference model and move it to the device of the trained one; None changes nothing."""
        if reference is not None and reference.model is not None:
            reference.model.to(self.forward.device)
            self.config = replace(self.config, reference=reference)

    @property
    def fixed_settings(self) -> dict[str, str | float]:
        """The settings that cannot change within a run; none for the cross-entropy."""
        if self.objective.data is None:
            return {}
        reference = self.config.reference
        known = {} if reference is None else {"weights of init_from": reference.fingerprint}
        return {"trainer.objective": self.name, "trainer.beta": self.config.beta, **known}

    def count(self, targets: Tensor) -> int:
        """The number of targets, or for DPO of pairs, that a loss is a mean over."""
        return self.objective.count(targets)

    def train(self, batch: Batch) -> LossOutput:
        """The loss to minimise."""
        return self.objective.compute(self.forward, batch, self.config)

    def evaluate(self, batch: Batch, accuracy: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of a batch without added terms, and its accuracy if ``accuracy`` or the objective asks for it."""
        config = replace(self.config, loss=LossConfig(accuracy=accuracy))
        output = self.objective.compute(self.forward, batch, config)
        return next(iter(output.losses.values())).float(), output.accuracy
