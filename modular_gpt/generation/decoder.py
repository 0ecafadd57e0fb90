"""A model that reads a text: what it has not read yet goes through it, and its cache follows.

The text is the truth; the decoder only catches up with it. That makes one rule of prompts, single steps, drafted
tokens and tokens taken back.
"""

import torch
from torch import Tensor

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.protocol import LanguageModel
from modular_gpt.generation.text import Text


class Decoder:
    """Logits after the last tokens of ``text``, with a cache of what was read.

    A text longer than the context slides, starts anew from a window of it, or is refused (see GenerationSettings):

    slide   every token sees the last context_length ones, itself included: the logits of one forward pass over the
            whole text with attention limited to that window. The cache is a ring of context_length tokens, so memory
            and time per token stay the same however long the text gets.
    window  the model reads the text from the start until the context is full, then again from the last half of
            it; one token in context_length / 2 costs reading half a context, about as much as one more per token.
    """

    def __init__(self, model: LanguageModel, text: Text, most: int, overflow: str = "slide") -> None:
        """most: columns that the text may reach"""
        self.model = model
        self.text = text
        self.context = model.config.context_length
        self.first = 0  # column of the text with which the cache starts
        self.windowed = most > self.context and overflow == "window"
        if most > self.context and overflow != "window":
            self._check_slides(most, overflow)
        self.cache: ModelCache = model.new_cache(
            text.ids.shape[0],
            max_length=min(most, self.context) if self.windowed else most,
            window=self.context if most > self.context else None,
        )

    def _check_slides(self, most: int, overflow: str) -> None:
        if overflow == "error" or not self.model.slides:
            why = "" if overflow == "error" else ", and its positions cannot slide past that"
            raise ConfigError(
                f"prompt and new tokens together make {most} tokens, but the model has a context of "
                f"{self.context}{why}; ask for fewer, or use overflow=window"
            )

    @property
    def read(self) -> int:
        """Columns of the text that the cache has seen."""
        assert isinstance(self.cache.length, int)
        return self.first + self.cache.length

    def logits(self, count: int = 1) -> Tensor:
        """(B, count, V): after each of the last ``count`` tokens of the text, none of which was read before."""
        if self.windowed and self.text.length - self.first > self.context:
            self._start_anew(count)
        new = self.text.ids[:, self.read :]
        assert new.shape[1] >= count
        while new.shape[1] > max(count, self.context):  # a long prompt, in pieces that keep memory bounded
            piece = min(self.context, new.shape[1] - count)
            self._forward(new[:, :piece], last_only=True)
            new = new[:, piece:]
        return self._forward(new, last_only=count == 1)[:, -count:]

    def _forward(self, ids: Tensor, last_only: bool) -> Tensor:
        padding = None
        if self.cache.length == 0 and self.text.padding is not None:
            padding = (self.text.padding - self.first).clamp(min=0)
        return self.model(ids, cache=self.cache, padding=padding, last_only=last_only)

    def _start_anew(self, count: int) -> None:
        """Forget all but the last half of the context."""
        keep = max(self.context // 2, count)
        self.first = self.text.length - keep
        self.cache.reset()

    def expand(self, n: int) -> None:
        """Repeat each row ``n`` times; what was read is not read again."""
        rows = torch.arange(self.cache.batch, device=self.text.ids.device).repeat_interleave(n)
        self.reorder(rows)

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (B',) of text and cache, in that order."""
        self.text.reorder(rows)
        self.cache.reorder(rows)
