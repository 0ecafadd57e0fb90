"""The cache of an attention with a convolution before it."""

from torch import Tensor

from modular_gpt.core.cache import LayerCache
from modular_gpt.core.cache_rows import select_rows


class ConvolutionCache(LayerCache):
    """The cache of an attention, ``inner``, and the last inputs of the convolution before it, ``history`` (B, D, C)."""

    def __init__(self, inner: LayerCache, history: Tensor) -> None:
        self.inner = inner
        self.history = history

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.inner.tensors, self.history]

    @tensors.setter
    def tensors(self, tensors: list[Tensor]) -> None:
        *self.inner.tensors, self.history = tensors

    def select(self, rows: Tensor, columns: slice = slice(None)) -> None:
        self.inner.select(rows, columns)
        (self.history,) = select_rows([self.history], rows)

    def reserved(self, max_length: int | None, padding: Tensor | None) -> LayerCache:
        self.inner = self.inner.reserved(max_length, padding)
        return self

    def reset(self) -> None:
        self.inner.reset()
        self.history.zero_()

    def forgets(self, length: int) -> bool:
        return True

    def restores_partially(self, count: int) -> bool:
        return False

    def save(self, start: int, count: int) -> list[Tensor]:
        return [*self.inner.save(start, count), self.history.clone()]

    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        *inner, history = saved
        self.inner.restore(inner, start, count, length)
        self.history.copy_(history)
