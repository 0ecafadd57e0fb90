"""The training loss: cross-entropy in chunks of rows, and optional terms."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.targets import IGNORED
from modular_gpt.core.validation import fraction, known_keywords, not_negative
from modular_gpt.model.vocabulary import VocabularyShard

_CHUNK = 2**24  # logits held at once while training; 64 MiB in float32


@dataclass
class LossOutput:
    """The loss of a batch; ``logits, loss = output`` unpacks it.

    loss: the scalar to minimise, in nats per token
    losses: its summands by name, ``cross_entropy`` and auxiliary losses
    head: computes the logits; None if the forward pass was compiled
    accuracy: fraction of the targets that are the most likely token; None without ``LossConfig.accuracy``
    """

    loss: Tensor
    losses: dict[str, Tensor]
    head: Callable[[], Tensor] | None = field(default=None, repr=False, compare=False)
    accuracy: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The former name of ``losses``."""
        return self.losses

    @cached_property
    def logits(self) -> Tensor:
        """(B, T, V), computed at the first use: the loss itself is computed in chunks and never holds all of them.

        Raises:
            ConfigError: the forward pass was compiled or exported, and computed the loss alone.
        """
        if self.head is None:
            raise ConfigError("a compiled forward pass with targets gives the loss alone; for logits call model(ids)")
        return self.head()

    def __iter__(self) -> Iterator[Tensor]:
        """logits, loss: the order of nanoGPT."""
        yield self.logits
        yield self.loss


@known_keywords("LossConfig")
@dataclass(frozen=True)
class LossConfig:
    """Terms that are added to the cross-entropy in training.

    label_smoothing: fraction of each target that is spread evenly over the vocabulary
        (https://arxiv.org/abs/1512.00567)
    z_loss: weight of the squared logarithm of the softmax's denominator, which keeps logits from drifting
        (https://arxiv.org/abs/2204.02311, there 0.0001)
    chunk: number of logits held at once while training (null: 2^24); it changes the memory, not the loss
    accuracy: also compute the fraction of the targets that are the most likely token

    Raises:
        ConfigError: label_smoothing is not in [0, 1), or z_loss is below 0.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    chunk: int | None = None
    accuracy: bool = False

    def __post_init__(self) -> None:
        fraction("loss", label_smoothing=self.label_smoothing)
        not_negative("loss", z_loss=self.z_loss)


PLAIN = LossConfig()
ACCURACY = "accuracy"  # beside the summands of the loss


def token_losses(
    x: Tensor,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    settings: LossConfig,
    vocabulary: VocabularyShard | None = None,
) -> dict[str, Tensor]:
    """Summands of the loss by name, each a mean over the targets that are not ``IGNORED``, and ``accuracy`` if set.

    ``cross_entropy`` is that without smoothing; ``label_smoothing`` is the change of it by smoothing. The logits of
    long batches are computed and freed chunk by chunk, in the backward pass as well.

    x: (B, T, D) inputs of the head
    targets: (B, T) token ids or ``IGNORED``
    logits: the head, (M, D) -> (M, V)
    vocabulary: the shard of the token ids whose logits the head computes; None: all ids
    """
    x, targets = x.flatten(0, 1), targets.flatten()
    rows = max(1, (settings.chunk or _CHUNK) // vocab_size)

    def sums(x: Tensor, targets: Tensor) -> Tensor:
        return torch.stack(_sums(logits(x).float(), targets, settings, vocabulary))

    if x.shape[0] <= rows:
        total = sums(x, targets)
    else:
        chunks = zip(x.split(rows), targets.split(rows), strict=True)
        by_chunk: list[Tensor] = [checkpoint(sums, a, b, use_reentrant=False) for a, b in chunks]
        total = torch.stack(by_chunk).sum(0)
    names = ["cross_entropy"]
    names += ["label_smoothing"] if settings.label_smoothing else []
    names += ["z_loss"] if settings.z_loss else []
    names += [ACCURACY] if settings.accuracy else []
    counted = (targets != IGNORED).sum().clamp(min=1)
    return {name: value / counted for name, value in zip(names, total.unbind(), strict=True)}


def _sums(
    logits: Tensor, targets: Tensor, settings: LossConfig, vocabulary: VocabularyShard | None = None
) -> list[Tensor]:
    """Cross-entropy and other summands of ``settings``, summed over the rows (M, V) whose target is not ``IGNORED``.

    vocabulary: the shard of the token ids of the logits; None: all ids
    """
    hits = [(_most_likely(logits, vocabulary) == targets).sum()] if settings.accuracy else []  # no id is ``IGNORED``
    if vocabulary is None and not settings.label_smoothing and not settings.z_loss:
        return [F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"), *hits]
    counts = targets != IGNORED
    losses, log_sum = _row_losses(logits, targets, counts, vocabulary)
    sums = [losses.sum()]
    if settings.label_smoothing:
        mean = logits.mean(-1) if vocabulary is None else vocabulary.mean(logits)
        uniform = log_sum - mean.where(counts, 0.0)  # the cross-entropy with uniform targets
        sums.append(settings.label_smoothing * (uniform.sum() - sums[0]))
    if settings.z_loss:
        sums.append(settings.z_loss * log_sum.square().sum())
    return [*sums, *hits]


def _most_likely(logits: Tensor, vocabulary: VocabularyShard | None) -> Tensor:
    """The most likely id of each row, (M, V) -> (M,)."""
    return logits.argmax(-1) if vocabulary is None else vocabulary.argmax(logits)


def _row_losses(
    logits: Tensor, targets: Tensor, counts: Tensor, vocabulary: VocabularyShard | None
) -> tuple[Tensor, Tensor]:
    """The cross-entropy and the log-sum-exp of the logits, both (M,) and 0 in rows whose target is ``IGNORED``.

    Neither allocates another tensor of the size of the logits.
    """
    valid_targets = targets.where(counts, 0)
    if vocabulary is None:
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        return losses, (losses + logits.gather(1, valid_targets[:, None])[:, 0]).where(counts, 0.0)
    log_sum = vocabulary.logsumexp(logits)
    return (log_sum - vocabulary.chosen(logits, valid_targets)).where(counts, 0.0), log_sum.where(counts, 0.0)


def perplexity(loss: float) -> float:
    """exp(loss) for a loss in nats per token; inf if that exceeds the range of a float, NaN for NaN."""
    return math.inf if loss >= 700.0 else math.exp(loss)
