"""The cache of generation: keys and values, latents or recurrent states of the tokens read so far.

``CacheSpec`` describes the cache of one layer and is computed from its config; predicted bytes and allocation both come
from it. ``TokenCache`` holds one row per token, in storage that grows or in a ring buffer of the last ``window``
tokens; ``StateCache`` holds a state of constant size; ``ConvolutionCache`` adds the last inputs of a convolution to
either; ``AnchoredCache`` keeps the first tokens of a text beside a ring buffer. ``ModelCache`` holds one per layer, and
their length. Only ``GPTModel.forward`` calls ``advance``; other code calls ``seek``, ``truncate`` or ``reset``.

Columns are not stored: the column of a row follows from its slot (see ``TokenCache._columns``).
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modular_gpt.core.cache_rows import move_slots, ring_slots, select_rows
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.positions import Positions

_ALL = slice(None)
_FIRST_ROWS = 64  # a growing cache starts with this many rows and doubles


def _ordinary_tensors() -> AbstractContextManager[object]:
    """Context manager: leave inference mode, because its tensors cannot be modified in place outside it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


@dataclass(frozen=True)
class CacheSpec:
    """Shapes of the tensors that one layer caches.

    rows: (heads, width) of each tensor with one row per token
    window: number of tokens kept, in a ring buffer; None: all
    anchors: number of first tokens of each text that are kept beside those of the window
    states: shapes, without the batch dimension, of the tensors whose size does not depend on the length; always
        float32, because a sum over thousands of tokens loses its small terms in 16 bits
    history: (width, tokens) of the last inputs that a convolution before the attention keeps; None: there is none
    """

    rows: tuple[tuple[int, int], ...] = ()
    window: int | None = None
    states: tuple[tuple[int, ...], ...] = ()
    anchors: int = 0
    history: tuple[int, int] | None = None

    def within(self, window: int | None) -> "CacheSpec":
        """The same spec with its window limited to ``window`` tokens; None: no limit."""
        smaller = window is not None and (self.window is None or window < self.window)
        return replace(self, window=window) if smaller else self

    def tokens(self, max_length: int) -> int:
        """Number of rows kept per sequence of ``max_length`` tokens."""
        return max_length if self.window is None else min(max_length, self.anchors + self.window)

    def nbytes(self, batch: int, tokens: int, dtype: torch.dtype) -> int:
        """Bytes of the cache of ``batch`` sequences of ``tokens`` tokens; dtype: of keys and values, not of states."""
        per_token = sum(heads * width for heads, width in self.rows) * dtype.itemsize
        constant = sum(torch.Size(shape).numel() for shape in self.states) * torch.float32.itemsize
        if self.history is not None:
            constant += torch.Size(self.history).numel() * dtype.itemsize
        return batch * (self.tokens(tokens) * per_token + constant)

    def allocate(self, batch: int, max_length: int | None, dtype: torch.dtype, device: torch.device) -> "LayerCache":
        """Allocate the cache of one layer, filled with zeros; ``max_length`` None: it grows with the tokens."""
        with _ordinary_tensors():
            if self.history is not None:
                from modular_gpt.core.convolution_cache import ConvolutionCache

                inner = replace(self, history=None).allocate(batch, max_length, dtype, device)
                return ConvolutionCache(inner, torch.zeros(batch, *self.history, dtype=dtype, device=device))
            if self.states:
                return StateCache([torch.zeros(batch, *shape, device=device) for shape in self.states])
            if self.anchors and self.window is not None:
                from modular_gpt.core.anchored_cache import allocate_anchored

                return allocate_anchored(self, self.window, batch, max_length, dtype, device)
            return TokenCache(self, batch, max_length, dtype, device)


class LayerCache(ABC):
    """The cache of one layer; ``tensors`` holds all of its tensors, each with the batch as first dimension."""

    tensors: list[Tensor]

    def nbytes(self) -> int:
        """Bytes of the allocated storages, which may be larger than the rows in use."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors)

    def select(self, rows: Tensor, columns: slice = _ALL) -> None:
        """Keep the batch rows ``rows`` (B',) in that order; outside ``columns``, rows i and ``rows[i]`` are equal."""
        self.tensors = select_rows(self.tensors, rows)

    def reserved(self, max_length: int | None, padding: Tensor | None) -> "LayerCache":
        """This cache, or one with its tokens, with space for ``max_length`` tokens (None: it grows); padding: (B,)."""
        return self

    @abstractmethod
    def reset(self) -> None:
        """Forget all tokens; the memory stays allocated."""

    @abstractmethod
    def forgets(self, length: int) -> bool:
        """Whether reading up to column ``length`` overwrites data that ``truncate`` needs."""

    @abstractmethod
    def restores_partially(self, count: int) -> bool:
        """Whether ``restore`` can undo the last of ``count`` tokens and keep the first; otherwise it undoes all."""

    @abstractmethod
    def save(self, start: int, count: int) -> list[Tensor]:
        """Copies of the data that ``count`` tokens from column ``start`` on will overwrite."""

    @abstractmethod
    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        """Undo the tokens from column ``length`` on, of the ``count`` tokens read after ``save(start, count)``."""


class StateCache(LayerCache):
    """A state of constant size, overwritten in place at each step."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def reset(self) -> None:
        for tensor in self.tensors:
            tensor.zero_()

    def forgets(self, length: int) -> bool:
        return True

    def restores_partially(self, count: int) -> bool:
        return False

    def save(self, start: int, count: int) -> list[Tensor]:
        return [tensor.clone() for tensor in self.tensors]

    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        for tensor, old in zip(self.tensors, saved, strict=True):
            tensor.copy_(old)


class TokenCache(LayerCache):
    """One row per token in each of ``tensors``, (B, heads, capacity, width).

    With a window the storage is a ring buffer: the token of column c is in slot c mod capacity, so a new token
    overwrites the one that has just left the window.
    """

    def __init__(
        self, spec: CacheSpec, batch: int, max_length: int | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.window = spec.window
        self.grows = max_length is None
        self.capacity = spec.tokens(_FIRST_ROWS if max_length is None else max_length)
        self.tensors = [
            torch.zeros(batch, heads, self.capacity, width, dtype=dtype, device=device) for heads, width in spec.rows
        ]

    def select(self, rows: Tensor, columns: slice = _ALL) -> None:
        slots = [columns] if self.window is None else ring_slots(columns, self.capacity)
        count = sum(len(range(self.capacity)[span]) for span in slots)
        if len(rows) != len(self.tensors[0]) or 2 * count > self.capacity:
            return super().select(rows)  # copies each row once; moving columns in place would copy them twice
        move_slots(self.tensors, rows, slots)

    def reset(self) -> None:
        """Do nothing: rows past the length are never read."""

    @property
    def _ring(self) -> int | None:
        """Number of columns after which slots are reused; None: never."""
        return self.window if self.window is None or self.grows else self.capacity

    def forgets(self, length: int) -> bool:
        return self._ring is not None and length > self._ring

    def restores_partially(self, count: int) -> bool:
        return self._ring is None or count <= self._ring

    def save(self, start: int, count: int) -> list[Tensor]:
        slots = self._reused(start, start, count)
        return [] if slots is None else [tensor.index_select(2, slots) for tensor in self.tensors]

    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        slots = self._reused(length, start, count)
        if slots is not None:
            for tensor, old in zip(self.tensors, saved, strict=True):
                slots = slots[: old.shape[2]]  # the storage may have grown since
                tensor.index_copy_(2, slots, old[:, :, -len(slots) :])

    def _reused(self, first: int, start: int, count: int) -> Tensor | None:
        """Reused slots of the columns from ``first`` to ``start + count``, exclusive, in the order of the columns.

        Returns None if no slot is reused, and all slots if ``count`` tokens overwrite the whole ring.
        """
        if self._ring is None or start + count <= max(first, self._ring):
            return None
        device = self.tensors[0].device
        if not self.restores_partially(count):
            return torch.arange(self.capacity, device=device)
        return torch.arange(max(first, self._ring), start + count, device=device) % self._ring

    def append(self, pos: Positions, *new: Tensor) -> tuple[list[Tensor], Tensor]:
        """Append the rows of the new tokens, one tensor (B, heads, T, width) per cached tensor.

        Returns the rows to attend to, each tensor (B, heads, S, width), and their columns (S,): consecutive where
        T > 1; negative for a slot that has never been written.
        """
        if isinstance(pos.start, Tensor):
            return self._append_at_tensor(pos, new)
        end = pos.start + pos.count
        self._grow(end)
        if self.window is not None and end > self.capacity:
            return self._append_to_ring(pos, pos.start, new)
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor[:, :, pos.start : end] = rows
        device = pos.columns.device
        columns = pos.memo("columns", lambda: torch.arange(end, device=device))
        return [tensor[:, :, :end] for tensor in self.tensors], columns

    def _columns(self, end: int | Tensor, pos: Positions) -> Tensor:
        """(capacity,) column of the token in each slot after ``end`` columns; negative where none was written."""

        def make() -> Tensor:
            slot = torch.arange(self.capacity, device=pos.columns.device)
            last = end - 1
            return last - torch.remainder(last - slot, self.capacity)

        return pos.memo(("ring columns", self.capacity), make)

    def _append_to_ring(self, pos: Positions, start: int, new: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Append to a ring buffer: one token overwrites the oldest slot.

        Several tokens may overwrite keys that the first of them attend to, so the old rows are copied before.
        """
        if pos.count == 1:
            slot = start % self.capacity
            for tensor, rows in zip(self.tensors, new, strict=True):
                tensor[:, :, slot : slot + 1] = rows
            return list(self.tensors), self._columns(start + 1, pos)
        used = min(start, self.capacity)
        oldest = (start - used) % self.capacity
        columns = pos.memo(
            ("ring and chunk", used), lambda: torch.arange(start - used, start + pos.count, device=pos.columns.device)
        )
        all_rows = [  # in the order of their columns
            torch.cat([tensor[:, :, oldest:used], tensor[:, :, :oldest], rows], dim=2)
            for tensor, rows in zip(self.tensors, new, strict=True)
        ]
        keep = min(pos.count, self.capacity)
        slots = pos.columns[-keep:] % self.capacity
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor.index_copy_(2, slots, rows[:, :, -keep:].to(tensor.dtype))
        return all_rows, columns

    def _append_at_tensor(self, pos: Positions, new: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Append with a start that is a tensor: shapes are fixed, and all slots are returned, unused ones masked."""
        assert not self.grows and pos.count == 1, "a start that is a tensor needs a fixed storage and one new token"
        slots = pos.columns % self.capacity
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor.index_copy_(2, slots, rows.to(tensor.dtype))
        return list(self.tensors), self._columns(pos.start + pos.count, pos)

    def _grow(self, end: int) -> None:
        """Enlarge the storage, to at least twice its capacity, where columns up to ``end`` do not fit."""
        needed = end if self.window is None else min(end, self.window)
        if needed <= self.capacity:
            return
        assert self.grows, "GPTModel.forward refuses tokens beyond a full cache"
        doubled = max(needed, 2 * self.capacity)
        self._enlarge(doubled if self.window is None else min(doubled, self.window))

    def reserved(self, max_length: int | None, padding: Tensor | None) -> LayerCache:
        self.grows = max_length is None
        if max_length is not None:
            self._enlarge(max_length if self.window is None else min(max_length, self.window))
        return self

    def _enlarge(self, capacity: int) -> None:
        """Move the rows to a storage of this capacity, where it is larger."""
        if capacity <= self.capacity:
            return
        for index, tensor in enumerate(self.tensors):
            with _ordinary_tensors():
                bigger = tensor.new_zeros(*tensor.shape[:2], capacity, tensor.shape[3])
            bigger[:, :, : self.capacity] = tensor  # a ring never wraps before it has reached its window
            self.tensors[index] = bigger
        self.capacity = capacity


@dataclass
class SavedCache:
    """Copies, by layer, of the data that ``count`` tokens from column ``start`` on overwrite: ``ModelCache.save``."""

    start: int
    count: int
    layers: list[list[Tensor]]


class ModelCache:
    """One LayerCache per layer, and the length and padding that they share.

    length: number of columns read so far, the same for every layer and row
    padding: (B,) number of left-padding columns of each row; None: no padding
    max_length: largest length; None: the cache grows
    window: number of last tokens that a token attends to in every layer, itself included; None: no common limit
    """

    def __init__(self, layers: list[LayerCache], batch: int, max_length: int | None, window: int | None = None) -> None:
        self.layers = layers
        self.batch = batch
        self.max_length = max_length
        self.window = window
        self.length: int | Tensor = 0
        self.padding: Tensor | None = None

    def nbytes(self) -> int:
        """Bytes of the allocated storages of all layers."""
        return sum(layer.nbytes() for layer in self.layers)

    def reserve(self, max_length: int | None) -> None:
        """Make space for ``max_length`` tokens, where there is less; None: the cache grows with the tokens."""
        if self.max_length is None or (max_length is not None and max_length <= self.max_length):
            return
        self.layers = [layer.reserved(max_length, self.padding) for layer in self.layers]
        self.max_length = max_length

    def advance(self, count: int) -> None:
        """Add ``count`` tokens, which every layer has appended, to the length."""
        self.length = self.length + count

    def seek(self, length: int | Tensor) -> None:
        """Set the length, as a number or as a 0-dim tensor, so that one compiled graph serves every step.

        length: number of columns that the layers hold; use ``truncate`` to remove tokens
        """
        self.length = length

    def begin(self, padding: Tensor | None) -> None:
        """Set the left padding (B,) of the rows; called with the first tokens."""
        self.padding = padding

    def reset(self) -> None:
        """Forget all tokens; the memory stays allocated."""
        self.length, self.padding = 0, None
        for layer in self.layers:
            layer.reset()

    def reorder(self, rows: Tensor, unchanged: int = 0, length: int | None = None) -> None:
        """Keep the batch rows ``rows`` (B',), in that order; the first ``unchanged`` of ``length`` columns stay."""
        columns = slice(unchanged, self.length if isinstance(self.length, int) else length)
        for layer in self.layers:
            layer.select(rows, columns)
        self.padding = None if self.padding is None else self.padding.index_select(0, rows)
        self.batch = len(rows)

    def expand(self, n: int) -> None:
        """Repeat each batch row ``n`` times: a prompt is read once for ``n`` samples."""
        device = self.layers[0].tensors[0].device
        self.reorder(torch.arange(self.batch, device=device).repeat_interleave(n))

    def save(self, count: int) -> SavedCache:
        """Copy the data that the next ``count`` tokens will overwrite, so that ``truncate`` can undo them.

        It copies nothing if each token has a separate slot, ``count`` rows of a full ring buffer, and all of a constant
        state.
        """
        assert isinstance(self.length, int)
        return SavedCache(self.length, count, [layer.save(self.length, count) for layer in self.layers])

    def truncate(self, length: int, saved: SavedCache | None = None) -> None:
        """Remove the tokens from column ``length`` on.

        saved: result of ``save`` from before those tokens were read. With a constant state, or a window smaller than
            the saved count, all tokens since then are removed and the length becomes ``saved.start``; the caller has to
            read the tokens from there to ``length`` again.

        Raises:
            ConfigError: ``saved`` is None, and a constant state or a full window has overwritten earlier tokens.
        """
        assert isinstance(self.length, int) and length <= self.length
        if length == self.length:
            return
        if saved is None and any(layer.forgets(self.length) for layer in self.layers):
            raise ConfigError(
                "this cache cannot go back: a constant state or a full window has overwritten earlier tokens"
            )
        if saved is not None:
            assert saved.start <= length and self.length <= saved.start + saved.count
            if not all(layer.restores_partially(saved.count) for layer in self.layers):
                length = saved.start
            for layer, tensors in zip(self.layers, saved.layers, strict=True):
                layer.restore(tensors, saved.start, saved.count, length)
        self.length = length
