"""A cache that is reused for a text with the same beginning, such as the next turn of a conversation."""

from collections.abc import Sequence

import torch

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.compiled import capacity
from modular_gpt.generation.protocol import LanguageModel, switch_length

_ENDLESS = 2**40  # maximum length of a sliding text, whose storage holds the last context_length tokens


class PromptCache:
    """Lends the cache of one text to successive runs, each of which reads only the tokens that the cache lacks.

    If the cache cannot be truncated to the common beginning of both texts (a constant state, a full window, or keys of
    another length of text), the next text is read from its beginning. Call ``forget`` after a change of the weights.

    ids: the tokens in the cache; empty while a run uses it, so that the cache of a failed run is not used again
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.ids: list[int] = []
        self._cache: ModelCache | None = None

    def lend(self, ids: Sequence[int], compiled: bool) -> tuple[ModelCache, int]:
        """The cache, and the number of first tokens of the text ``ids`` in it, which is less than their number.

        compiled: whether single steps are compiled, for which the storage must not grow
        """
        cache, cached_ids, self.ids = self._cache, self.ids, []
        if cache is None or (compiled and cache.max_length is None):
            cache = self._cache = self._new(compiled)
            return cache, 0
        switch = switch_length(self.model)
        same_keys = switch is None or (len(cached_ids) > switch) == (len(ids) > switch)
        count = _common_prefix(cached_ids, ids[:-1]) if same_keys else 0
        cache.seek(len(cached_ids))
        try:
            cache.truncate(count)
        except ConfigError:
            count = 0
        if not count:
            cache.reset()
        return cache, count

    def take_back(self, ids: Sequence[int]) -> None:
        """Record ``ids``, the tokens now in the cache, for the next run."""
        self.ids = list(ids)

    def forget(self) -> None:
        """Free the cache."""
        self.ids, self._cache = [], None

    def _new(self, compiled: bool) -> ModelCache:
        context, slides = self.model.config.context_length, self.model.slides
        longest = _ENDLESS if slides else capacity(context, context)
        return self.model.new_cache(1, longest if compiled else None, window=context if slides else None)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    shorter = min(len(first), len(second))
    if not shorter:
        return 0
    equal = torch.tensor(first[:shorter]) == torch.tensor(second[:shorter])
    return int(equal.long().cumprod(0).sum())
