"""Reordering of batch rows in the tensors of a cache, as beam search does after each token."""

import torch
from torch import Tensor


def select_rows(tensors: list[Tensor], rows: Tensor) -> list[Tensor]:
    """The tensors with the batch rows ``rows`` (B',), in that order.

    They are modified in place if the number of rows stays and at most half of them change; otherwise they are copies.
    """
    if tensors and len(rows) == len(tensors[0]):
        changed = changed_rows(rows)
        if 2 * len(changed) <= len(rows):
            for tensor in tensors:
                tensor.index_copy_(0, changed, tensor.index_select(0, rows[changed]))
            return tensors
    return [tensor.index_select(0, rows) for tensor in tensors]


def changed_rows(rows: Tensor) -> Tensor:
    """The indices i with ``rows[i] != i``; on other devices than the CPU all indices, to avoid a synchronisation."""
    indices = torch.arange(len(rows), device=rows.device)
    return indices[rows != indices] if rows.device.type == "cpu" else indices


def move_slots(tensors: list[Tensor], rows: Tensor, slots: list[slice]) -> None:
    """Overwrite row i of each tensor (B, heads, slots, width) by row ``rows[i]``, in ``slots`` alone."""
    changed = changed_rows(rows)
    for tensor in tensors:
        for span in slots:
            moved = tensor[:, :, span]
            moved.index_copy_(0, changed, moved.index_select(0, rows[changed]))


def move_slots_by_row(tensors: list[Tensor], rows: Tensor, slots: Tensor) -> None:
    """``move_slots`` with separate slots for each row, ``slots`` (B or 1, T), equal in rows i and ``rows[i]``."""
    changed = changed_rows(rows)
    row_slots = slots if len(slots) == 1 else slots[changed]
    for tensor in tensors:
        tensor[changed[:, None], :, row_slots] = tensor[rows[changed][:, None], :, row_slots]


def ring_slots(columns: slice, capacity: int) -> list[slice]:
    """The slots of ``columns`` in a ring buffer, in which column c is in slot c mod capacity; all for an open slice."""
    if columns.stop is None or columns.stop - columns.start >= capacity:
        return [slice(None)]
    first, last = columns.start % capacity, columns.stop % capacity
    if first <= last:
        return [slice(first, last)]
    return [slice(first, capacity), slice(0, last)]
