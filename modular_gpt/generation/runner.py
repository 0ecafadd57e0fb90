"""Run a model over the tokens of a growing text that are not in its cache yet.

Prompts, single steps, drafted tokens and removed drafts follow one rule: the runner reads the tokens that its cache
lacks.
"""

from functools import cached_property

import torch
from torch import Tensor

from modular_gpt.core.cache import ModelCache, SavedCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.compiled import StepFunction, capacity
from modular_gpt.generation.lineage import Lineage
from modular_gpt.generation.prompt_cache import PromptCache
from modular_gpt.generation.protocol import LanguageModel, switch_length
from modular_gpt.generation.sequences import TokenBuffer


class ModelRunner:
    """Computes logits after the last tokens of ``text``, with a cache of the tokens that were read.

    The treatment of a text longer than the context depends on ``overflow``:

    slide   each token attends to the last context_length tokens, itself included: the logits equal those of one forward
            pass over the whole text with attention limited to that window. The cache is a ring of context_length
            tokens, so memory and time per token do not grow with the text. A constant state is not limited.
    window  whenever the context is full, the model reads the last half of it again; this costs about one more token
            for each token.
    error   raises a ConfigError.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: TokenBuffer,
        max_tokens: int,
        overflow: str = "slide",
        step: StepFunction | None = None,
    ) -> None:
        """max_tokens: largest number of columns to read; step: compiled single steps, see ``compiled_step``"""
        self.model = model
        self.text = text
        self.context: int = model.config.context_length
        self.windowed = max_tokens > self.context and overflow == "window"
        if max_tokens > self.context and overflow != "window":
            self._check_slides(max_tokens, overflow)
        self._longest = min(max_tokens, self.context) if self.windowed else max_tokens
        self._window = self.context if max_tokens > self.context else None
        self._compiled = step
        self._first = 0  # column of the text with which the cache starts
        self._cached = 0  # number of columns in the cache, whose ``length`` may be a tensor
        self._saved: SavedCache | None = None
        self._behind = False  # whether ``rollback`` had to remove more columns than the text
        self._switch = switch_length(model)
        self._beyond: list[bool] = []  # whether each row was longer than ``_switch`` when it was read
        self._reread = False  # whether the cache was emptied since the last draft began
        self._lineage: Lineage | None = None  # of rows that are copies of each other; None: rows are not reordered

    @cached_property
    def cache(self) -> ModelCache:
        """The cache of the tokens read; allocated at first use, unless ``reuse`` gave one."""
        longest = max(self._longest, capacity(self._longest, self.context)) if self._compiled else self._longest
        return self.model.new_cache(self.text.ids.shape[0], max_length=longest, window=self._window)

    def reuse(self, kept: PromptCache) -> None:
        """Continue with the cache of an earlier text; called before anything is read.

        A text with ``overflow=window`` that is longer than the context does not use it.
        """
        if not self.windowed:
            self.cache, self._cached = kept.lend(self.text.ids[0].tolist(), self._compiled is not None)
            self._beyond = self._longer_rows()

    def keep(self, kept: PromptCache) -> None:
        """Return the cache to ``kept``, with the tokens of the text that were read."""
        if self.windowed:
            return
        self.rollback()
        self.cache.seek(self._cached)
        stale = self._switch is not None and self._beyond != [self._cached > self._switch]
        kept.take_back([] if stale else self.text.ids[0, : self._cached].tolist())

    def _check_slides(self, max_tokens: int, overflow: str) -> None:
        if overflow == "error" or not self.model.slides:
            why = "" if overflow == "error" else ", and its positions cannot slide past that"
            raise ConfigError(
                f"prompt and new tokens together make {max_tokens} tokens, but the model has a context of "
                f"{self.context}{why}; ask for fewer, or use overflow=window"
            )

    @property
    def read(self) -> int:
        """Number of columns of the text that were read."""
        return self._first + self._cached

    @property
    def remaining(self) -> int:
        """Number of columns that the text can grow by before the window is reset."""
        return self._first + self.context - self.text.length if self.windowed else 2**62

    @property
    def draftable(self) -> int:
        """Number of columns that can be read at once with the same keys as if they were read one by one."""
        if self._switch is None:
            return self.remaining
        left = [self._switch - length for length in self._row_lengths() if length <= self._switch]
        return min([self.remaining, *left])

    def logits(self, count: int = 1) -> Tensor:
        """(B, count, V) logits after each of the last ``count`` tokens of the text, none of which has been read."""
        new = self._unread(count)
        if self._compiled is not None and new.shape[1] == 1 and self._cached:
            if isinstance(self.cache.length, int):
                self.cache.seek(torch.tensor(self._cached, device=new.device))
            self._cached += 1
            return self._compiled(self.model, new.contiguous(), self.cache)  # one stride, one graph
        padding = self._prepare(new)
        return self.model(new, cache=self.cache, padding=padding, last_only=count == 1)[:, -count:]

    def hidden_states(self, count: int = 1) -> Tensor:
        """(B, count, D) inputs of the output head for each of the last ``count`` tokens, see ``logits``."""
        new = self._unread(count)
        return self.model.hidden_states(new, self.cache, self._prepare(new))[0][:, -count:]

    def prefill(self) -> None:
        """Read all tokens but the last one."""
        self._behind = False
        new = self._unread(1)[:, :-1]
        if new.shape[1]:
            self.model(new, cache=self.cache, padding=self._prepare(new), last_only=True)

    def _unread(self, count: int) -> Tensor:
        """The tokens (B, T) to read at once. The beginning of a long text is read here, in chunks of the context."""
        if self.remaining < 0:
            self.reset_window()
        if self._switch is not None:
            self._discard_changed_keys()
        new = self.text.ids[:, self.read :]
        assert new.shape[1] >= count
        while new.shape[1] > max(count, self.context):
            chunk = new[:, : min(self.context, new.shape[1] - count)]
            self.model(chunk, cache=self.cache, padding=self._prepare(chunk), last_only=True)
            new = new[:, chunk.shape[1] :]
        return new

    def _row_lengths(self) -> list[int]:
        """Number of tokens of each row without padding; of a single row if no row is padded."""
        padding = [0] if self.text.padding is None else (self.text.padding - self._first).clamp(min=0).tolist()
        return [self.text.length - self._first - skipped for skipped in padding]

    def _longer_rows(self) -> list[bool]:
        """Whether each row is longer than the length beyond which keys change; [] if they never do."""
        return [] if self._switch is None else [length > self._switch for length in self._row_lengths()]

    def _discard_changed_keys(self) -> None:
        """Empty the cache if some row has grown, or shrunk, past the length beyond which its keys change."""
        beyond = self._longer_rows()
        if self._cached and beyond != self._beyond:
            self._cached, self._lineage, self._reread = 0, None, True
            self.cache.reset()
        self._beyond = beyond

    def _prepare(self, new: Tensor) -> Tensor | None:
        """Set the cache's length, add that of ``new`` to it, and return the padding if these are the first tokens."""
        first = self._cached == 0
        self.cache.seek(self._cached)
        self._cached += new.shape[1]
        if not first or self.text.padding is None:
            return None
        return (self.text.padding - self._first).clamp(min=0)

    def reset_window(self) -> None:
        """Empty the cache and start again from the last half of the context."""
        self._first, self._cached = self.text.length - max(self.context // 2, 1), 0
        self._lineage = None  # rows are no copies of each other after they are read again
        self.cache.reset()

    def begin_draft(self, count: int) -> None:
        """Prepare for ``count`` drafted tokens: save the data that they will overwrite, for ``rollback``."""
        if self._behind:
            self.prefill()
        if self._switch is not None:
            self._discard_changed_keys()
        self.cache.seek(self._cached)
        self._saved, self._reread = self.cache.save(self.text.length - self.read + count), False

    def rollback(self) -> None:
        """Remove from the cache the tokens that are no longer in the text."""
        remaining = self.text.length - self._first
        if remaining < self._cached and self._reread:  # the saved data belongs to other keys
            self._cached, self._behind, self._reread = 0, True, False
            self.cache.reset()
        elif remaining < self._cached:
            self.cache.truncate(remaining, self._saved)
            self._lineage = None
            assert isinstance(self.cache.length, int)
            self._cached = self.cache.length
            self._behind = self._cached < remaining

    def expand(self, n: int) -> None:
        """Repeat each row of text and cache ``n`` times, without reading anything again."""
        self.text.expand(n)
        self.cache.expand(n)
        self._lineage = Lineage(self.cache.batch, self._cached, self.text.ids.device)

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` (B',) of text and cache, in that order; after ``expand``, within each prompt."""
        self.text.reorder(rows)
        unchanged = 0 if self._lineage is None else self._lineage.move(rows, self._cached)
        self.cache.reorder(rows, unchanged, self._cached)
