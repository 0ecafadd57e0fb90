"""What a training minimises: a row of ``OBJECTIVES`` for each, with the data that it needs."""

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
    """The model that DPO compares with.

    model: a frozen one of its own; None: the trained model itself, inside ``switched_off``
    fingerprint: of its weights; empty where they are those of the trained model
    """

    model: GPTModel | None
    switched_off: Callable[[], AbstractContextManager[None]] = nullcontext
    fingerprint: str = ""

    @classmethod
    def frozen(cls, model: GPTModel) -> "Reference":
        """A copy of a model, which is never trained."""
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

    loss: terms added to the cross-entropy; beta: of DPO; reference: the model that DPO compares with
    """

    loss: LossConfig
    beta: float
    reference: Reference | None = None


@dataclass(frozen=True)
class Objective:
    """What a training minimises.

    data: the class of data that it needs, None: any other; needs: the setting that gives such data
    count: how many units of some targets its losses are means over
    compute: the loss of a batch, as a mean over these units; with ``accuracy`` for evaluations
    compiles: whether its forward pass may be compiled
    """

    data: type[PreparedData] | None
    needs: str
    count: Callable[[Tensor], int]
    compute: Callable[[Forward, Batch, ObjectiveConfig], LossOutput]
    compiles: bool = True


def count_targets(targets: Tensor) -> int:
    """The number of targets that count."""
    return int((targets != IGNORED).sum())


def count_pairs(targets: Tensor) -> int:
    """The number of pairs (B, 2, T) that have targets."""
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
    """The mean DPO loss of pairs (B, 2, T); its accuracy is the share of pairs whose chosen answer has more reward."""
    assert config.reference is not None
    ids, targets = (tensor.to(forward.device) for tensor in batch)
    rows, wanted = ids.flatten(0, 1), targets.flatten(0, 1)
    reference = config.reference.logprobs(forward, rows, wanted)
    policy = row_logprobs(forward.logits(rows), wanted)
    losses, margins = dpo_losses(policy.view(-1, 2), reference.view(-1, 2), config.beta)
    real = (targets != IGNORED).flatten(1).any(1)
    counted = real.sum().clamp(min=1)
    loss = (losses * real).sum() / counted
    accuracy = ((margins > 0) & real).sum() / counted
    return LossOutput(loss, {"dpo": loss, "reward_margin": (margins * real).sum().detach() / counted}, None, accuracy)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": Objective(None, "text, records or other data", count_targets, cross_entropy),
    "dpo": Objective(PreparedPairs, "data=preferences", count_pairs, dpo, compiles=False),
}


def check_objective(name: str, data: PreparedData) -> Objective:
    """The objective of that name; ConfigError if it cannot be trained on this data."""
    for other, objective in OBJECTIVES.items():
        if objective.data is not None and isinstance(data, objective.data) and other != name:
            raise ConfigError(f"{objective.needs} is for trainer.objective={other}, not {name}: set one of the two")
    chosen = OBJECTIVES[name]
    if chosen.data is not None and not isinstance(data, chosen.data):
        raise ConfigError(f"trainer.objective={name} needs {chosen.needs}: set one of the two")
    return chosen


class Loss:
    """An objective with its settings, as the loop and the evaluation use it."""

    def __init__(
        self, objective: Objective, config: TrainerConfig, forward: Forward, adapters: Adapters | None
    ) -> None:
        """adapters: of the model, without which it is the reference"""
        self.objective, self.forward = objective, forward
        reference = None if adapters is None else Reference(None, adapters.switched_off)
        self.config = ObjectiveConfig(config.loss, config.beta, reference)
        self.name = next(name for name, known in OBJECTIVES.items() if known is objective)

    def use_reference(self, reference: Reference | None) -> None:
        """Compare with this model, which is moved to the device of the trained one; None changes nothing."""
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
        """How many units of some targets a loss is a mean over."""
        return self.objective.count(targets)

    def train(self, batch: Batch) -> LossOutput:
        """The loss to minimise."""
        return self.objective.compute(self.forward, batch, self.config)

    def evaluate(self, batch: Batch, accuracy: bool) -> tuple[Tensor, Tensor | None]:
        """The plain loss of a batch and, where it is asked for or is part of the objective, its accuracy."""
        config = replace(self.config, loss=LossConfig(accuracy=accuracy))
        output = self.objective.compute(self.forward, batch, config)
        return next(iter(output.losses.values())).float(), output.accuracy
