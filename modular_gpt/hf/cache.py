"""A ModelCache as transformers' ``generate`` handles caches."""

from torch import Tensor
from transformers import Cache

from modular_gpt.core.cache import ModelCache, SavedCache
from modular_gpt.core.errors import ConfigError


class GenerationCache(Cache):
    """A ModelCache behind the interface that ``generate`` expects; ``cache.inner`` is the ModelCache."""

    def __init__(self, inner: ModelCache) -> None:
        super().__init__(layers=[])
        self.inner = inner
        self._recording = False
        self._saved: list[SavedCache] = []  # since tokens were last taken back

    def nbytes(self) -> int:
        """Bytes of all storages allocated."""
        return self.inner.nbytes()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        assert isinstance(self.inner.length, int)
        return self.inner.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1 if self.inner.max_length is None else self.inner.max_length

    @property
    def batch_size(self) -> int:
        return self.inner.batch

    @property
    def is_initialized(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.inner.layers)

    def reset(self) -> None:
        self.inner.reset()
        self._saved.clear()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.inner.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.inner.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.inner.expand(repeats)

    # Drafted tokens that turn out wrong are taken back: assisted generation and prompt lookup.

    @property
    def is_croppable(self) -> bool:
        return all(layer.restores_partially(1) for layer in self.inner.layers)

    def activate_past_recording(self) -> None:
        """Record every forward pass from now on, so that it can be rolled back.

        Raises:
            ConfigError: the attention keeps a constant state, which cannot be rolled back.
        """
        if not self.is_croppable:
            raise ConfigError(
                "assisted generation takes drafted tokens back, which a constant state (attention=linear, "
                "attention.conv) cannot; generate without an assistant and without prompt lookup"
            )
        self._recording = True

    def portion(self, count: int) -> int:
        """The number of tokens, at most ``count``, to read at once so that any of them can be rolled back."""
        while self._recording and not all(layer.restores_partially(count) for layer in self.inner.layers):
            count -= 1
        return count

    def before_reading(self, count: int) -> None:
        """Save what ``count`` tokens will overwrite; call it before they are read into ``inner``."""
        if self._recording:
            self._saved.append(self.inner.save(count))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens: a negative number removes that many, a positive one is the length to keep.

        Raises:
            ConfigError: they were not recorded, and a full sliding window has overwritten earlier tokens.
        """
        wanted = tokens_to_remove if tokens_to_remove > 0 else self.get_seq_length() + tokens_to_remove
        while self._saved and self.get_seq_length() > wanted:
            saved = self._saved.pop()
            self.inner.truncate(max(saved.start, wanted), saved)
        if self.get_seq_length() > wanted:
            self.inner.truncate(wanted)
        self._saved.clear()

    def update(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        raise AssertionError("layers of this model write to cache.inner")


def padding_of(mask: Tensor, ids: Tensor, cached: int | None) -> Tensor | None:
    """The padding on the left of each row (B,), from an attention mask of 0 and 1; None if there is none.

    mask: (B, S) over cached and new tokens; ids: (B, T); cached: tokens in the cache, or None where there is none.
    Padding on the right changes nothing for the tokens before it, so without a cache it is left alone.

    Raises:
        ConfigError: the mask has another shape, a hole, or padding on the right of tokens to be continued.
    """
    if mask.ndim != 2 or mask.shape != (ids.shape[0], (cached or 0) + ids.shape[1]):
        raise ConfigError(
            f"attention_mask must be 0 or 1 for each of {ids.shape[0]} rows of {(cached or 0) + ids.shape[1]} tokens, "
            f"got shape {tuple(mask.shape)}"
        )
    text = mask.bool()
    if cached:  # what stands before is known to the cache
        if not bool(text[:, -ids.shape[1] :].all()):
            raise ConfigError("attention_mask hides tokens after cached ones; only padding on the left can be hidden")
        return None
    count, width = text.sum(dim=1), mask.shape[1]
    padding = (text.cumsum(dim=1) == 0).sum(dim=1)
    last = width - (text.flip(1).cumsum(dim=1) == 0).sum(dim=1)
    if bool((last - padding > count).any()):
        raise ConfigError("attention_mask hides tokens between others; only padding at the ends can be hidden")
    if cached is not None and bool((last < width).any()):
        raise ConfigError("the prompts are padded on the right; pad them on the left: tokenizer.padding_side = 'left'")
    return padding if bool((padding > 0).any()) else None
