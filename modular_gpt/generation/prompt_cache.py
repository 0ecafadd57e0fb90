"""The cache of the last text, kept for a next one that begins the same, such as the next turn of a conversation."""

from collections.abc import Sequence

import torch

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.compiled import capacity
from modular_gpt.generation.protocol import LanguageModel, switch_length

_ENDLESS = 2**40  # tokens of a text that slides; its storage holds the last context_length ones


class PromptCache:
    """Lends the cache of one text to runs over it, each of which reads only the tokens that the last one did not.

    Where the cache cannot go back to the tokens that both texts begin with (a constant state, a window that is full, or
    keys of another length of text), the next text is read from its beginning. After a change of the model's weights,
    call ``forget``.

    ids: the tokens in the cache; none while a run uses it, so that a run that fails leaves nothing behind
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.ids: list[int] = []
        self._cache: ModelCache | None = None

    def lend(self, ids: Sequence[int], compiled: bool) -> tuple[ModelCache, int]:
        """The cache, and the number of first tokens of a text that it holds, always fewer than the text has.

        compiled: single steps are compiled, for which the storage must not grow
        """
        cache, kept, self.ids = self._cache, self.ids, []
        if cache is None or (compiled and cache.max_length is None):
            cache = self._cache = self._new(compiled)
            return cache, 0
        switch = switch_length(self.model)
        same_keys = switch is None or (len(kept) > switch) == (len(ids) > switch)
        count = _common(kept, ids[:-1]) if same_keys else 0
        cache.seek(len(kept))
        try:
            cache.truncate(count)
        except ConfigError:
            count = 0
        if not count:
            cache.reset()
        return cache, count

    def take_back(self, ids: Sequence[int]) -> None:
        """Keep the cache, which now holds these tokens, for the next run."""
        self.ids = list(ids)

    def forget(self) -> None:
        """Free the cache."""
        self.ids, self._cache = [], None

    def _new(self, compiled: bool) -> ModelCache:
        context, slides = self.model.config.context_length, self.model.slides
        longest = _ENDLESS if slides else capacity(context, context)
        return self.model.new_cache(1, longest if compiled else None, window=context if slides else None)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    shorter = min(len(first), len(second))
    if not shorter:
        return 0
    equal = torch.tensor(first[:shorter]) == torch.tensor(second[:shorter])
    return int(equal.long().cumprod(0).sum())
