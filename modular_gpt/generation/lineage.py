"""Which columns of a cache are copies of one row in all rows, so that they stay in place when rows move."""

import torch
from torch import Tensor


class Lineage:
    """The row that wrote each column of each row.

    The rows of a prompt start as copies of one row. Those of a search move among themselves after each token, and soon
    descend from one of them: only the columns since their last common ancestor have to be moved.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        """rows: in all, copies of the rows of prompts; columns: number of columns that were read before the copies"""
        self._columns = columns
        self._writer = torch.empty(rows, 0, dtype=torch.long, device=device)  # of the columns after these

    def move(self, rows: Tensor, columns: int) -> int:
        """Record that row i becomes a copy of ``rows[i]``, one of the same prompt; columns: number read by now.

        Returns the number of first columns in which this changes nothing; without waiting for a device other than the
        CPU, those that were read before the copies.
        """
        known = self._columns + self._writer.shape[1]
        here = torch.arange(len(self._writer), device=rows.device)
        before = torch.cat([self._writer, here[:, None].expand(-1, columns - known)], dim=1)
        self._writer = before.index_select(0, rows)
        if rows.device.type != "cpu":
            return self._columns
        changed = (before != self._writer).any(dim=0)
        return self._columns + int(changed.long().argmax()) if changed.any() else columns
