"""What a model keeps of the past while it generates, as small as theory says.

``CacheSpec`` is what one layer keeps, read off the config: the predicted bytes and the allocation both come
from it. ``TokenCache`` keeps a row per token, growing or as a ring of the last ``window`` ones; ``StateCache``
keeps a constant state. ``ModelCache`` holds one of them per layer and the one length they share: only
``GPTModel.forward`` calls ``advance``, others ``seek``, ``truncate`` or ``reset``.

Positions are not stored: a row's column follows from its slot (see ``TokenCache._columns``).
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.positions import Positions

_FIRST_ROWS = 64  # a growing cache starts with this many rows and doubles


def _ordinary_tensors() -> AbstractContextManager[object]:
    """Tensors that can be written to in any mode: those made inside inference_mode cannot be, outside it."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


@dataclass(frozen=True)
class CacheSpec:
    """What one layer caches.

    rows: (heads, width) of each tensor that keeps a row per token
    window: at most this many tokens are kept (a ring); None keeps all
    states: shapes, without the batch, of what is kept whatever the length; always float32, because a sum over
        thousands of tokens loses its small terms in 16 bits
    """

    rows: tuple[tuple[int, int], ...] = ()
    window: int | None = None
    states: tuple[tuple[int, ...], ...] = ()

    def within(self, window: int | None) -> "CacheSpec":
        """The same, with no more than the last ``window`` tokens kept."""
        smaller = window is not None and (self.window is None or window < self.window)
        return replace(self, window=window) if smaller else self

    def tokens(self, max_length: int) -> int:
        """Rows kept for a text of ``max_length`` tokens."""
        return max_length if self.window is None else min(max_length, self.window)

    def nbytes(self, batch: int, tokens: int, dtype: torch.dtype) -> int:
        """Bytes kept for ``batch`` rows of ``tokens`` tokens."""
        per_token = sum(heads * width for heads, width in self.rows) * dtype.itemsize
        constant = sum(torch.Size(shape).numel() for shape in self.states) * torch.float32.itemsize
        return batch * (self.tokens(tokens) * per_token + constant)

    def allocate(self, batch: int, max_length: int | None, dtype: torch.dtype, device: torch.device) -> "LayerCache":
        with _ordinary_tensors():
            if self.states:
                return StateCache([torch.zeros(batch, *shape, device=device) for shape in self.states])
            return TokenCache(self, batch, max_length, dtype, device)


class LayerCache(ABC):
    """What one layer keeps; ``tensors`` is all of it."""

    tensors: list[Tensor]

    def nbytes(self) -> int:
        """Bytes of the storages really held, not of the views in use."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors)

    def select(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` (B',), in that order; a row may be named several times."""
        self.tensors = [tensor.index_select(0, rows) for tensor in self.tensors]

    @abstractmethod
    def reset(self) -> None:
        """Forget everything, keep the memory."""

    @abstractmethod
    def forgets(self, length: int) -> bool:
        """Whether reading up to ``length`` columns overwrites what going back would need."""

    @abstractmethod
    def keeps_part(self, count: int) -> bool:
        """Whether ``restore`` can undo some of ``count`` tokens and keep those before, or only undo all."""

    @abstractmethod
    def save(self, start: int, count: int) -> list[Tensor]:
        """Copies of what ``count`` tokens after ``start`` columns will overwrite."""

    @abstractmethod
    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        """Undo, of ``count`` tokens read after ``save(start, count)``, those from column ``length`` on."""


class StateCache(LayerCache):
    """A constant state, overwritten in place at each step."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def reset(self) -> None:
        for tensor in self.tensors:
            tensor.zero_()

    def forgets(self, length: int) -> bool:
        return True

    def keeps_part(self, count: int) -> bool:
        return False

    def save(self, start: int, count: int) -> list[Tensor]:
        return [tensor.clone() for tensor in self.tensors]

    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        for tensor, old in zip(self.tensors, saved, strict=True):
            tensor.copy_(old)


class TokenCache(LayerCache):
    """One row per token in each of ``tensors``, (B, heads, capacity, width).

    With a window the storage is a ring: the token of column c lives in slot c mod capacity, so a new token
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

    def reset(self) -> None:
        """Nothing to do: rows past the length are never read."""

    @property
    def _ring(self) -> int | None:
        """Columns after which slots are used again; None when they never are."""
        return self.window if self.window is None or self.grows else self.capacity

    def forgets(self, length: int) -> bool:
        return self._ring is not None and length > self._ring

    def keeps_part(self, count: int) -> bool:
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
        """Slots that the columns from ``first`` on, of ``count`` after ``start``, take from older ones, in order."""
        if self._ring is None or start + count <= max(first, self._ring):
            return None
        device = self.tensors[0].device
        if not self.keeps_part(count):
            return torch.arange(self.capacity, device=device)
        return torch.arange(max(first, self._ring), start + count, device=device) % self._ring

    def append(self, pos: Positions, *new: Tensor) -> tuple[list[Tensor], Tensor]:
        """Keep the new rows, each (B, heads, T, width).

        Returns all rows to attend to, each (B, heads, S, width), and the column (S,) of each, one after the other
        where several tokens are new; a negative column marks a slot that has never been written.
        """
        if isinstance(pos.start, Tensor):
            return self._append_anywhere(pos, new)
        end = pos.start + pos.count
        self._make_room(end)
        if self.window is not None and end > self.capacity:
            return self._append_to_ring(pos, pos.start, new)
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor[:, :, pos.start : end] = rows
        device = pos.columns.device
        columns = pos.memo("columns", lambda: torch.arange(end, device=device))
        return [tensor[:, :, :end] for tensor in self.tensors], columns

    def _columns(self, end: int | Tensor, pos: Positions) -> Tensor:
        """(capacity,) the column in each slot after ``end`` columns were written; negative where none was."""

        def make() -> Tensor:
            slot = torch.arange(self.capacity, device=pos.columns.device)
            last = end - 1
            return last - torch.remainder(last - slot, self.capacity)

        return pos.memo(("ring columns", self.capacity), make)

    def _append_to_ring(self, pos: Positions, start: int, new: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """One token overwrites the slot that left the window; a longer chunk attends first and evicts then."""
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
        everything = [  # in the order of their columns
            torch.cat([tensor[:, :, oldest:used], tensor[:, :, :oldest], rows], dim=2)
            for tensor, rows in zip(self.tensors, new, strict=True)
        ]
        keep = min(pos.count, self.capacity)
        slots = pos.columns[-keep:] % self.capacity
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor.index_copy_(2, slots, rows[:, :, -keep:].to(tensor.dtype))
        return everything, columns

    def _append_anywhere(self, pos: Positions, new: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """The start is a tensor: fixed shapes, the whole storage is attended to, the mask does the rest."""
        assert not self.grows and pos.count == 1, "one compiled graph serves single steps in a fixed storage"
        slots = pos.columns % self.capacity
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor.index_copy_(2, slots, rows.to(tensor.dtype))
        return list(self.tensors), self._columns(pos.start + pos.count, pos)

    def _make_room(self, end: int) -> None:
        needed = end if self.window is None else min(end, self.window)
        if needed <= self.capacity:
            return
        assert self.grows, "GPTModel.forward refuses tokens beyond a full cache"
        doubled = max(needed, 2 * self.capacity)
        capacity = doubled if self.window is None else min(doubled, self.window)
        for index, tensor in enumerate(self.tensors):
            with _ordinary_tensors():
                bigger = tensor.new_zeros(*tensor.shape[:2], capacity, tensor.shape[3])
            bigger[:, :, : self.capacity] = tensor  # a ring never wraps before it has reached its window
            self.tensors[index] = bigger
        self.capacity = capacity


@dataclass
class SavedCache:
    """What ``count`` tokens after column ``start`` overwrite, layer by layer; see ``ModelCache.save``."""

    start: int
    count: int
    layers: list[list[Tensor]]


class ModelCache:
    """One LayerCache per layer, and the length and padding they share.

    length: columns seen so far, the same for every layer and row
    padding: (B,) left-padding columns of each row, or None
    max_length: columns it can be given, or None when it grows
    window: no token sees more than the last ``window`` ones in any layer, or None
    """

    def __init__(self, layers: list[LayerCache], batch: int, max_length: int | None, window: int | None = None) -> None:
        self.layers = layers
        self.batch = batch
        self.max_length = max_length
        self.window = window
        self.length: int | Tensor = 0
        self.padding: Tensor | None = None

    def nbytes(self) -> int:
        """Bytes of all storages really allocated."""
        return sum(layer.nbytes() for layer in self.layers)

    def advance(self, count: int) -> None:
        """Count ``count`` new tokens, which every layer has appended."""
        self.length = self.length + count

    def seek(self, length: int | Tensor) -> None:
        """Express the length as a number, or as a 0-dim tensor, which one compiled graph takes at every step.

        length: columns whose tokens the layers hold; to go back, use ``truncate``
        """
        self.length = length

    def begin(self, padding: Tensor | None) -> None:
        """Keep the left padding (B,) of the rows, which is given with the first tokens."""
        self.padding = padding

    def reset(self) -> None:
        """Forget all tokens; the memory stays allocated."""
        self.length, self.padding = 0, None
        for layer in self.layers:
            layer.reset()

    def reorder(self, rows: Tensor) -> None:
        """Keep the batch rows ``rows`` (B',), in that order; beam search moves its rows this way."""
        for layer in self.layers:
            layer.select(rows)
        self.padding = None if self.padding is None else self.padding.index_select(0, rows)
        self.batch = len(rows)

    def expand(self, n: int) -> None:
        """Repeat each row ``n`` times, so that a prompt computed once serves ``n`` samples."""
        device = self.layers[0].tensors[0].device
        self.reorder(torch.arange(self.batch, device=device).repeat_interleave(n))

    def save(self, count: int) -> SavedCache:
        """Copies of what the next ``count`` tokens will overwrite, so that ``truncate`` can take them back.

        Nothing where every token has a slot of its own, ``count`` rows of a full window, a whole constant state.
        """
        assert isinstance(self.length, int)
        return SavedCache(self.length, count, [layer.save(self.length, count) for layer in self.layers])

    def truncate(self, length: int, saved: SavedCache | None = None) -> None:
        """Forget the tokens from column ``length`` on.

        saved: from before those tokens were read. With a constant state, or a window smaller than the saved count,
            all tokens since then are forgotten, and the length is ``saved.start``: read those before ``length`` again.

        Raises:
            ConfigError: nothing was saved and a constant state or a full window has forgotten the past.
        """
        assert isinstance(self.length, int) and length <= self.length
        if length == self.length:
            return
        if saved is None and any(layer.forgets(self.length) for layer in self.layers):
            raise ConfigError("this cache cannot go back: a constant state or a full window has forgotten the past")
        if saved is not None:
            assert saved.start <= length and self.length <= saved.start + saved.count
            if not all(layer.keeps_part(saved.count) for layer in self.layers):
                length = saved.start
            for layer, tensors in zip(self.layers, saved.layers, strict=True):
                layer.restore(tensors, saved.start, saved.count, length)
        self.length = length
