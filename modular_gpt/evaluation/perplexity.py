"""Loss, perplexity and bits per byte of a model on a text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch

from modular_gpt.core.errors import ConfigError, DataError
from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.windows import Window, log_probabilities, windows
from modular_gpt.model import GPTModel


@dataclass(frozen=True)
class Evaluation:
    """How well a text was predicted.

    loss: nats per token, the mean over ``scored`` tokens, all but the first
    tokens, bytes: of the text, the bytes in UTF-8
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
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Predict a text; see ``evaluate_tokens``.

    Raises:
        DataError: the text has fewer than two tokens, or characters that the tokenizer does not know.
        ConfigError: a setting that cannot work.
    """
    ids = np.asarray(tokenizer.encode(text), dtype=np.int64)
    return evaluate_tokens(model, ids, len(text.encode()), context=context, stride=stride, batch_size=batch_size)


def evaluate_tokens(
    model: GPTModel,
    ids: np.ndarray | Sequence[int],
    size: int,
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int = 8,
) -> Evaluation:
    """Predict every token but the first, each once, from the tokens before it within a window.

    ids: one-dimensional, may be memory-mapped; size: bytes of the text that they stand for
    context: tokens that the model reads at once; None for its context_length
    stride: tokens from one window to the next; None for ``context``, which cuts the text into chunks. A smaller one
        gives tokens more to look back on, and takes context / stride times as long.
    batch_size: windows computed at once

    Raises:
        DataError: fewer than two tokens, or ids outside the model's vocabulary.
        ConfigError: a setting that cannot work.
    """
    ids = np.asarray(ids)
    context = model.config.context_length if context is None else context
    stride = context if stride is None else stride
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    if len(ids) < 2:
        raise DataError(f"the text has {len(ids)} tokens; at least 2 are needed, one to predict from the other")
    highest = int(ids.max())
    if highest >= model.config.vocab_size or int(ids.min()) < 0:
        raise DataError(
            f"the text has token {highest}, but the model's ids end at {model.config.vocab_size - 1}; "
            "use the tokenizer that the model was trained with"
        )
    device, total, training = model.embedding.weight.device, 0.0, model.training
    model.eval()
    try:
        for batch in _batches(windows(len(ids), context, stride), batch_size):
            rows = np.stack([ids[each.start : each.end + 1] for each in batch]).astype(np.int64)
            found = log_probabilities(model, torch.from_numpy(rows).to(device), batch[0].scored)
            total -= found.double().sum().item()
    finally:
        model.train(training)
    scored = len(ids) - 1
    return Evaluation(total / scored, scored, len(ids), size, context, stride)


def _batches(found: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Windows of one length that score equally many, side by side."""
    for _, alike in groupby(found, key=lambda each: (each.end - each.start, each.scored)):
        while batch := list(islice(alike, size)):
            yield batch
