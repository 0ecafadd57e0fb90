"""Loss, perplexity and bits per byte of a model on a text."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TypedDict, Unpack

import numpy as np
import torch

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.windows import Window, check_finite, log_probabilities, sliding_windows
from modular_gpt.model import GPTModel

Progress = Callable[[int, int], object]  # called with the numbers of tokens scored so far and in all


class WindowOptions(TypedDict, total=False):
    """How a text is read.

    context: tokens that the model reads at once; None for its context_length
    stride: tokens from one window to the next; None for ``context``, which cuts the text into chunks. A smaller one
        gives tokens more to look back on, and takes context / stride times as long.
    batch_size: windows computed at once, 8 unless given
    """

    context: int | None
    stride: int | None
    batch_size: int


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    loss: mean over the ``scored`` tokens, in nats per token: all but the first; with a bos_id before the text, all
    tokens, bytes: of the text (without bos_id), and of its UTF-8
    context, stride: of the windows (see ``windows``)
    """

    loss: float
    scored: int
    tokens: int
    bytes: int
    context: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp(loss), per token; depends on the tokenizer."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """The loss as bits per byte of text; comparable between tokenizers."""
        return self.loss / math.log(2) * self.tokens / self.bytes


def evaluate_text(
    model: GPTModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    progress: Progress | None = None,
    **options: Unpack[WindowOptions],
) -> Evaluation:
    """Measure how well a model predicts a text; it is preceded by the tokenizer's ``bos_id`` if there is one.

    progress, options: as in ``evaluate_tokens``

    Raises:
        DataError: the text has too few tokens, or characters that the tokenizer does not know.
        ConfigError: a setting that cannot work.
        NonFiniteError: the model's logits are not finite.
    """
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    return evaluate_tokens(model, ids, len(text.encode()), bos_id=tokenizer.bos_id, progress=progress, **options)


def evaluate_tokens(
    model: GPTModel,
    ids: np.ndarray | Sequence[int],
    size: int,
    *,
    bos_id: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[WindowOptions],
) -> Evaluation:
    """Measure how well a model predicts tokens, each once, from the tokens before it within a window.

    ids: (n,) may be memory-mapped; size: bytes of the text
    bos_id: id that stands once before the text, so that the first token is predicted too; None: it is not predicted
    progress: called after each batch with the number of tokens scored so far and in all
    options: context, stride and batch_size, see ``WindowOptions``

    Raises:
        DataError: fewer than two tokens, bos_id included, or ids outside the model's vocabulary.
        ConfigError: a setting that cannot work.
        NonFiniteError: the model's logits are not finite.
    """
    context, stride, batch_size = _resolved(options, model.config.context_length)
    ids = np.asarray(ids)
    text = _Text(ids, bos_id)
    _check(text, model.config.vocab_size)
    total, done, scored = 0.0, 0, len(text) - 1
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(sliding_windows(len(text), context, stride), batch_size):
            total += _negative_log_likelihood(model, text, batch)
            done += len(batch) * batch[0].scored
            if progress is not None:
                progress(done, scored)
    finally:
        model.train(was_training)
    return Evaluation(total / scored, scored, len(ids), size, context, stride)


def text_loss(model: GPTModel, ids: torch.Tensor, batch: int = 8) -> float:
    """Mean cross-entropy in nats per token of a text (n,), each token given those before it in its window.

    The text is split into windows of the model's context_length; ``batch`` of them are read at once.
    """
    return evaluate_tokens(model, ids.cpu().numpy(), len(ids), batch_size=batch).loss


def _resolved(options: WindowOptions, context_length: int) -> tuple[int, int, int]:
    """The context, the stride and the batch size, by default those that ``WindowOptions`` names."""
    context, stride, batch_size = options.get("context"), options.get("stride"), options.get("batch_size", 8)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    context = context_length if context is None else context
    return context, context if stride is None else stride, batch_size


class _Text:
    """The ids of a text with an optional id before them, without a copy of the whole."""

    def __init__(self, ids: np.ndarray, bos_id: int | None) -> None:
        self.ids = ids
        self.before = np.array([] if bos_id is None else [bos_id], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.before) + len(self.ids)

    def slice(self, start: int, end: int) -> np.ndarray:
        """(end - start,) int64"""
        shift = len(self.before)
        rest = self.ids[max(start - shift, 0) : max(end - shift, 0)]
        return np.concatenate([self.before[start:end], rest.astype(np.int64)])


def _check(text: _Text, vocab_size: int) -> None:
    if len(text) < 2:
        raise DataError(f"the text has {len(text.ids)} tokens; at least 2 are needed, one to predict from the other")
    wrong = [int(id) for ids in (text.before, text.ids) if len(ids) for id in (ids.max(), ids.min())]
    wrong = [id for id in wrong if not 0 <= id < vocab_size]
    if wrong:
        raise DataError(
            f"the text has token {wrong[0]}, but the model's ids end at {vocab_size - 1}; "
            "use the tokenizer that the model was trained with"
        )


def _negative_log_likelihood(model: GPTModel, text: _Text, batch: Sequence[Window]) -> float:
    """The sum over the scored tokens of windows of one length.

    Raises:
        CheckpointError: it is not finite.
    """
    rows = np.stack([text.slice(window.start, window.end + 1) for window in batch])
    device = model.embedding.weight.device
    value = -log_probabilities(model, torch.from_numpy(rows).to(device), batch[0].scored).double().sum().item()
    check_finite(value, f"token {batch[0].start:,}")
    return value


def _batches(found: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Windows of one length that score equally many tokens, up to ``size`` of them together."""
    for _, equal in groupby(found, key=lambda window: (window.end - window.start, window.scored)):
        while batch := list(islice(equal, size)):
            yield batch
