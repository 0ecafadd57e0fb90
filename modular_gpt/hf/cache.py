"""ModelCache as a cache of the transformers library."""

from torch import Tensor
from transformers import Cache

from modular_gpt.core.cache import ModelCache, SavedCache
from modular_gpt.core.errors import ConfigError


class GenerationCache(Cache):
    """A ModelCache with the interface of transformers' ``Cache``.

    inner: the ModelCache
    """

    def __init__(self, inner: ModelCache) -> None:
        super().__init__(layers=[])
        self.inner = inner
        self._recording = False
        self._saved: list[SavedCache] = []  # one for each forward pass since the last rollback

    def nbytes(self) -> int:
        """Number of allocated bytes."""
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

    # Assisted generation and prompt lookup roll back rejected draft tokens with the following methods.

    @property
    def is_croppable(self) -> bool:
        """Whether single tokens can be removed; false for a constant state."""
        return all(layer.restores_partially(1) for layer in self.inner.layers)

    def activate_past_recording(self) -> None:
        """Record every later forward pass, so that its tokens can be rolled back.

        Raises:
            ConfigError: the attention has a constant state, which cannot be rolled back.
        """
        if not self.is_croppable:
            raise ConfigError(
                "assisted generation rolls back draft tokens, which a constant state (attention=linear, "
                "attention.conv) does not support; generate without an assistant and without prompt lookup"
            )
        self._recording = True

    def chunk_size(self, count: int) -> int:
        """The largest number of tokens, at most ``count``, of which one forward pass can be rolled back partially."""
        while self._recording and not all(layer.restores_partially(count) for layer in self.inner.layers):
            count -= 1
        return count

    def save_overwritten(self, count: int) -> None:
        """Save the data that the next ``count`` tokens will overwrite; called before each forward pass."""
        if self._recording:
            self._saved.append(self.inner.save(count))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens: -n removes n tokens, a positive number is the length to keep.

        Raises:
            ConfigError: the tokens were not recorded, and a full sliding window has overwritten earlier ones.
        """
        length = tokens_to_remove if tokens_to_remove > 0 else self.get_seq_length() + tokens_to_remove
        while self._saved and self.get_seq_length() > length:
            saved = self._saved.pop()
            self.inner.truncate(max(saved.start, length), saved)
        if self.get_seq_length() > length:
            self.inner.truncate(length)
        self._saved.clear()

    def update(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        raise AssertionError("layers of this model write to cache.inner")


def padding_of(mask: Tensor, ids: Tensor, cached: int | None) -> Tensor | None:
    """The number of padding columns on the left of each row (B,), from an attention mask; None if there are none.

    Without a cache, padding on the right is ignored, since it does not affect the tokens before it.

    mask: (B, S) of 0 and 1 over cached and new tokens; ids: (B, T) new tokens
    cached: number of tokens in the cache; None: there is no cache

    Raises:
        ConfigError: the mask has another shape, hides tokens between others, or, with a cache, hides tokens on the
            right or after cached ones.
    """
    if mask.ndim != 2 or mask.shape != (ids.shape[0], (cached or 0) + ids.shape[1]):
        raise ConfigError(
            f"attention_mask must be 0 or 1 for each of {ids.shape[0]} rows of {(cached or 0) + ids.shape[1]} tokens, "
            f"got shape {tuple(mask.shape)}"
        )
    visible = mask.bool()
    if cached:  # the cache has stored the padding of its tokens
        if not bool(visible[:, -ids.shape[1] :].all()):
            raise ConfigError("attention_mask hides tokens after cached ones; only padding on the left can be hidden")
        return None
    count, width = visible.sum(dim=1), mask.shape[1]
    padding = (visible.cumsum(dim=1) == 0).sum(dim=1)
    end = width - (visible.flip(1).cumsum(dim=1) == 0).sum(dim=1)
    if bool((end - padding > count).any()):
        raise ConfigError("attention_mask hides tokens between others; only padding at the ends can be hidden")
    if cached is not None and bool((end < width).any()):
        raise ConfigError("the prompts are padded on the right; pad them on the left: tokenizer.padding_side = 'left'")
    return padding if bool((padding > 0).any()) else None
