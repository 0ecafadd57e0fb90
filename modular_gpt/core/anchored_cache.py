"""A token cache that keeps the first tokens of each text, and the last ones in a ring buffer."""

from dataclasses import replace

import torch
from torch import Tensor

from modular_gpt.core.cache import CacheSpec, LayerCache, TokenCache
from modular_gpt.core.cache_rows import move_slots_by_row
from modular_gpt.core.positions import Positions

_UNWRITTEN = -(2**30)  # column of a slot that holds no token: below every column


def allocate_anchored(
    spec: CacheSpec, window: int, batch: int, max_length: int | None, dtype: torch.dtype, device: torch.device
) -> TokenCache:
    """Allocate the cache of a spec with anchors; it has a ring buffer if ``max_length`` tokens do not all fit."""
    if max_length is not None and max_length <= spec.anchors + window:
        return TokenCache(replace(spec, window=None), batch, max_length, dtype, device)
    return AnchoredCache(spec, window, batch, max_length, dtype, device)


class AnchoredCache(TokenCache):
    """Rows of the first ``anchors`` tokens of each text and of the last ``ring`` tokens after them.

    The token at position p of its text is in slot p if p < anchors, else in slot anchors + (p - anchors) mod ring.
    Slots are computed from positions, not from columns, because left-padded texts begin in different columns.
    """

    def __init__(
        self,
        spec: CacheSpec,
        ring: int,
        batch: int,
        max_length: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(spec, batch, max_length, dtype, device)
        self.anchors, self.ring = spec.anchors, ring
        self.window = spec.anchors + ring
        self._padding: Tensor | None = None  # as in the ModelCache; ``save`` and ``restore`` do not receive it

    def select(self, rows: Tensor, columns: slice = slice(None)) -> None:
        count = self.ring if columns.stop is None else columns.stop - (columns.start or 0)
        if not columns.start or len(rows) != len(self.tensors[0]) or 2 * count > self.capacity or count >= self.ring:
            super().select(rows)
        elif count:  # rows with equal first columns have equal padding, and so the same slots
            slots = self._slots(torch.arange(columns.start, columns.stop, device=rows.device))
            move_slots_by_row(self.tensors, rows, slots)
        self._padding = None if self._padding is None else self._padding.index_select(0, rows)

    def reset(self) -> None:
        self._padding = None

    def restores_partially(self, count: int) -> bool:
        return count <= self.ring

    def save(self, start: int, count: int) -> list[Tensor]:
        if not self.forgets(start + count):
            return []
        self._grow(start + count)
        if not self.restores_partially(count):
            return [tensor.clone() for tensor in self.tensors]
        slots = self._slots(torch.arange(start, start + count, device=self.tensors[0].device))
        return [tensor.gather(2, _along(slots, tensor)) for tensor in self.tensors]

    def restore(self, saved: list[Tensor], start: int, count: int, length: int) -> None:
        columns = torch.arange(length, start + count, device=self.tensors[0].device)
        for tensor, old in zip(self.tensors, saved, strict=False):
            if self.restores_partially(count):
                slots = _along(self._slots(columns), tensor)
                tensor.scatter_(2, slots, old[:, :, length - start :])
            else:
                tensor.copy_(old)

    def append(self, pos: Positions, *new: Tensor) -> tuple[list[Tensor], Tensor]:
        """Append the rows of the new tokens, one tensor (B, heads, T, width) per cached tensor.

        Returns the rows to attend to and their columns: (S,) consecutive where these tokens are the first, otherwise
        (B or 1, S) in any order, negative for a slot that holds no token.
        """
        self._padding = pos.padding
        if isinstance(pos.start, Tensor):
            return self._append_at_tensor(pos, new)
        self._grow(pos.start + pos.count)
        if pos.count == 1 and pos.start:
            return self._write_one(pos, new)
        rows, columns = list(new), pos.columns
        if pos.start:
            cached = self._slot_columns(pos.start)
            columns = torch.cat([cached, pos.columns.expand(len(cached), -1)], dim=1)
            rows = [torch.cat([tensor, fresh], dim=2) for tensor, fresh in zip(self.tensors, new, strict=True)]
        self._write(pos, pos.start, new)
        return rows, columns

    def _append_at_tensor(self, pos: Positions, new: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        assert not self.grows and pos.count == 1, "a start that is a tensor needs a fixed storage and one new token"
        return self._write_one(pos, new)

    def _write_one(self, pos: Positions, new: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        slots = self._slots(pos.columns)
        for tensor, rows in zip(self.tensors, new, strict=True):
            tensor.scatter_(2, _along(slots, tensor), rows.to(tensor.dtype))
        return list(self.tensors), self._slot_columns(pos.start + 1)

    def _write(self, pos: Positions, start: int, new: tuple[Tensor, ...]) -> None:
        """Write several tokens, of which later ones may overwrite earlier ones."""
        end = start + pos.count
        if pos.padding is None and end <= self.capacity:
            for tensor, rows in zip(self.tensors, new, strict=True):
                tensor[:, :, start:end] = rows
            return
        token = self._slot_columns(end) - start  # (B or 1, capacity): index of the new token that belongs in each slot
        for tensor, rows in zip(self.tensors, new, strict=True):
            found = rows.gather(2, _along(token.clamp(min=0), rows)).to(tensor.dtype)
            tensor.copy_(torch.where((token >= 0)[:, None, :, None], found, tensor))

    def _slots(self, columns: Tensor) -> Tensor:
        """(B or 1, T) slot of each column (T,). Padding has slot 0, which the first token of the text overwrites."""
        position = columns[None] if self._padding is None else columns[None] - self._padding[:, None]
        ring_slot = self.anchors + torch.remainder(position - self.anchors, self.ring)
        return torch.where(position < self.anchors, position.clamp(min=0), ring_slot)

    def _slot_columns(self, end: int | Tensor) -> Tensor:
        """(B or 1, capacity) column of the token in each slot after ``end`` columns."""
        slot = torch.arange(self.capacity, device=self.tensors[0].device)[None]
        begin = torch.zeros_like(slot[:, :1]) if self._padding is None else self._padding[:, None]
        last = end - 1 - begin  # position of the last token of each row
        ring_position = last - torch.remainder(last - slot, self.ring)
        is_anchor = slot < self.anchors
        position = torch.where(is_anchor, slot, ring_position)
        written = torch.where(is_anchor, slot <= last, ring_position >= self.anchors)
        return torch.where(written, position + begin, _UNWRITTEN)


class ShortAnchoredCache(TokenCache):
    """The cache of a spec with anchors for texts so short that all of their tokens are kept."""

    def __init__(self, spec: CacheSpec, batch: int, max_length: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(replace(spec, window=None), batch, max_length, dtype, device)
        self._spec = spec

    def reserved(self, max_length: int | None, padding: Tensor | None) -> LayerCache:
        assert self._spec.window is not None
        if max_length is not None and max_length <= self._spec.anchors + self._spec.window:
            return super().reserved(max_length, padding)
        first = self.tensors[0]
        longer = AnchoredCache(self._spec, self._spec.window, len(first), max_length, first.dtype, first.device)
        longer._padding = padding
        longer._grow(self.capacity)
        columns = torch.arange(self.capacity, device=first.device)[None]
        columns = columns if padding is None else (columns + padding[:, None]).clamp(max=self.capacity - 1)
        for new, old in zip(longer.tensors, self.tensors, strict=True):  # slots there are computed from positions
            new[:, :, : self.capacity] = old.gather(2, _along(columns, old))
        return longer


def _along(slots: Tensor, rows: Tensor) -> Tensor:
    """(B or 1, T) indices of slots as indices (B, heads, T, width) for ``gather`` and ``scatter_`` in dimension 2."""
    batch, heads, _, width = rows.shape
    return slots[:, None, :, None].expand(batch, heads, -1, width)
