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
from modular_gpt.model.loss import perplexity

Progress = Callable[[int, int], object]  # called with the number of scored tokens and their total number


class WindowOptions(TypedDict, total=False):
    """Settings of the sliding windows over a text.

    context: number of tokens in a window; None: the model's context_length
    stride: number of tokens from the start of a window to the next; None: ``context``, disjoint windows. A smaller
        stride gives each token a longer context, and takes context / stride times as long.
    batch_size: number of windows in a forward pass, by default 8
    """

    context: int | None
    stride: int | None
    batch_size: int


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation on a text.

    loss: mean cross-entropy over the scored tokens, in nats per token
    scored: number of scored tokens: all but the first, or all if a bos_id precedes the text
    tokens, bytes: size of the text in tokens (without bos_id) and in bytes of UTF-8
    context, stride: sizes of the windows in tokens (see ``sliding_windows``)
    """

    loss: float
    scored: int
    tokens: int
    bytes: int
    context: int
    stride: int

    @property
    def perplexity(self) -> float:
        """exp(loss) per token, which depends on the tokenizer; infinite if it exceeds the range of a float."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits per byte of text, which is comparable between tokenizers."""
        return self.loss / math.log(2) * self.tokens / self.bytes


def evaluate_text(
    model: GPTModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    progress: Progress | None = None,
    **options: Unpack[WindowOptions],
) -> Evaluation:
    """Evaluate a model on a text, which is preceded by the tokenizer's ``bos_id`` if there is one.

    progress, options: as in ``evaluate_tokens``

    Raises:
        DataError: the text has too few tokens, characters outside the tokenizer's vocabulary, or ids outside the
            model's vocabulary.
        ConfigError: a setting is invalid.
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
    """Evaluate a model on the tokens of a text; each is scored once, given the tokens before it in its window.

    The model's mode, training or evaluation, is restored at the end.

    ids: (n,) token ids, which may be memory-mapped; size: bytes of the text
    bos_id: id before the text, so that its first token is scored too; None: the first token is not scored
    progress: called after each batch with the number of scored tokens and their total number
    options: context, stride and batch_size, see ``WindowOptions``

    Raises:
        DataError: there are fewer than two tokens, bos_id included, or ids outside the model's vocabulary.
        ConfigError: a setting is invalid.
        NonFiniteError: the model's logits are not finite.
    """
    context, stride, batch_size = _resolve(options, model.config.context_length)
    ids = np.asarray(ids)
    text = _Tokens(ids, bos_id)
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
    """Mean cross-entropy of a text (n,) in nats per token, in disjoint windows of the model's context_length.

    batch: number of windows in a forward pass
    """
    return evaluate_tokens(model, ids.cpu().numpy(), len(ids), batch_size=batch).loss


def _resolve(options: WindowOptions, context_length: int) -> tuple[int, int, int]:
    """The context, the stride and the batch size, with the defaults of ``WindowOptions`` filled in."""
    context, stride, batch_size = options.get("context"), options.get("stride"), options.get("batch_size", 8)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    context = context_length if context is None else context
    return context, context if stride is None else stride, batch_size


class _Tokens:
    """The token ids of a text after an optional ``bos_id``, without a copy of the ids."""

    def __init__(self, ids: np.ndarray, bos_id: int | None) -> None:
        self.ids = ids
        self.bos = np.array([] if bos_id is None else [bos_id], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.bos) + len(self.ids)

    def slice(self, start: int, end: int) -> np.ndarray:
        """The ids at positions start ... end - 1, (end - start,) int64."""
        shift = len(self.bos)
        ids = self.ids[max(start - shift, 0) : max(end - shift, 0)]
        return np.concatenate([self.bos[start:end], ids.astype(np.int64)])


def _check(text: _Tokens, vocab_size: int) -> None:
    """Raise a DataError if there are fewer than two tokens, or ids outside the vocabulary."""
    if len(text) < 2:
        raise DataError(
            f"the text has {len(text.ids)} tokens, and at least 2 are needed, one to predict from the other: give a"
            " longer text"
        )
    extremes = [int(id) for ids in (text.bos, text.ids) if len(ids) for id in (ids.max(), ids.min())]
    outside = [id for id in extremes if not 0 <= id < vocab_size]
    if outside:
        raise DataError(
            f"the text has token {outside[0]}, but the model's ids end at {vocab_size - 1}; "
            "use the tokenizer that the model was trained with"
        )


def _negative_log_likelihood(model: GPTModel, text: _Tokens, batch: Sequence[Window]) -> float:
    """The sum over the scored tokens of windows, which all have the same size and number of scored tokens.

    Raises:
        NonFiniteError: the sum is not finite.
    """
    rows = np.stack([text.slice(window.start, window.end + 1) for window in batch])
    device = model.embedding.weight.device
    value = -log_probabilities(model, torch.from_numpy(rows).to(device), batch[0].scored).double().sum().item()
    check_finite(value, f"token {batch[0].start:,}")
    return value


def _batches(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Yield batches of at most ``size`` windows of the same size and number of scored tokens."""
    for _, group in groupby(windows, key=lambda window: (window.end - window.start, window.scored)):
        while batch := list(islice(group, size)):
            yield batch
