"""Tracks the columns of a cache that are equal in all rows, which stay in place when rows are reordered."""

import torch
from torch import Tensor


class Lineage:
    """The row that wrote each column of each row.

    The rows of a prompt start as copies of one row. A search reorders them after each token, and soon they descend from
    one of them, so that only the columns since their last common ancestor have to be copied.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        """rows: number of rows, which are copies of the prompts' rows; columns: number of columns read before that"""
        self._columns = columns
        self._writer = torch.empty(rows, 0, dtype=torch.long, device=device)  # of the columns after these

    def move(self, rows: Tensor, columns: int) -> int:
        """Record that row i becomes a copy of ``rows[i]``, a row of the same prompt; columns: number read so far.

        Returns the number of first columns in which this changes nothing. On other devices than the CPU it is the
        number of columns read before copying, to avoid a synchronisation.
        """
        known = self._columns + self._writer.shape[1]
        here = torch.arange(len(self._writer), device=rows.device)
        before = torch.cat([self._writer, here[:, None].expand(-1, columns - known)], dim=1)
        self._writer = before.index_select(0, rows)
        if rows.device.type != "cpu":
            return self._columns
        changed = (before != self._writer).any(dim=0)
        return self._columns + int(changed.long().argmax()) if changed.any() else columns
