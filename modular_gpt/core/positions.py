"""Positions of the tokens of one forward pass, and a memo that its layers share."""

from collections.abc import Callable, Hashable
from copy import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


def document_starts(documents: Tensor) -> Tensor:
    """(B, T) document ids -> (B, T) column at which the document of each column begins.

    A document begins in the first column, and in each column whose id differs from that of the column before.
    """
    columns = torch.arange(documents.shape[1], device=documents.device)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts: Tensor = torch.where(begins, columns, 0).cummax(dim=1).values
    return starts


class Positions:
    """Columns and positions of the T new tokens of one forward pass; masks, rotations and biases derive from them.

    The column of a token is its index in the padded sequence; its position is its index in the text of its row:
    position = column - left padding of the row. Padding tokens have negative positions.

    start: number of columns before the new tokens; a 0-dim tensor where one compiled graph serves every step
    count: T, the number of new tokens
    padding: (B,) number of left-padding columns of each row; None: no row is padded
    window: largest number of keys that a query sees in any layer, its token's included; None: only layers limit it
    document_starts: (B, T) column at which the document of each column begins; queries see no earlier key, and
        positions count from there. None: each row is one text. Neither padding nor earlier tokens go with it.
    """

    def __init__(
        self,
        start: int | Tensor,
        count: int,
        padding: Tensor | None,
        device: torch.device,
        window: int | None = None,
        document_starts: Tensor | None = None,
    ) -> None:
        self.start = start
        self.count = count
        self.padding = padding
        self.window = window
        self.document_starts = document_starts
        self.columns = torch.arange(count, device=device) + start  # (T,)
        self.index = self.columns[None]  # (B or 1, T)
        if padding is not None:
            self.index = self.index - padding[:, None]
        if document_starts is not None:
            self.index = self.index - document_starts[:, self.columns]
        self._memo: dict[Hashable, Any] = {}

    @property
    def is_prefill(self) -> bool:
        """Whether no token precedes the new ones, known without reading a tensor."""
        return isinstance(self.start, int) and self.start == 0

    def limit(self, window: int | None) -> int | None:
        """Largest number of keys that a query sees in a layer with this window; None: all."""
        if window is None or self.window is None:
            return self.window if window is None else window
        return min(window, self.window)

    def valid(self) -> Tensor | None:
        """(B, T) True where a token is not padding; None: no row is padded."""
        return None if self.padding is None else self.index >= 0

    def text_lengths(self) -> Tensor:
        """Number of tokens of the text that each new token belongs to, (B or 1, 1); (B, T) with documents."""
        if self.document_starts is None:
            return self.index.amax(-1, keepdim=True) + 1
        columns = self.document_starts.shape[1]
        begins = torch.arange(columns, device=self.columns.device) == self.document_starts  # (B, columns)
        ends = torch.where(begins, self.document_starts, columns).roll(-1, dims=1)
        ends[:, -1] = columns
        ends = ends.flip(1).cummin(dim=1).values.flip(1)
        return (ends - self.document_starts)[:, self.columns]

    def without_memo(self) -> "Positions":
        """The same positions with a new, empty memo, for code that is recomputed or frees tensors early."""
        same = copy(self)
        same._memo = {}
        return same

    def narrow(self, first: int, count: int) -> "Positions":
        """The positions of the new tokens ``first`` to ``first + count - 1``."""
        return self.memo(
            ("narrow", first, count),
            lambda: Positions(
                self.start + first, count, self.padding, self.columns.device, self.window, self.document_starts
            ),
        )

    def unpadded(self) -> "Positions":
        """The positions of the same columns without padding."""
        return self.memo("unpadded", lambda: Positions(self.start, self.count, None, self.columns.device, self.window))

    def memo(self, key: Hashable, make: Callable[[], R]) -> R:
        """The result of ``make()``, called once per forward pass and ``key``; later layers share the result."""
        try:
            known = key in self._memo
        except TypeError:  # during export a size in the key may be a symbol, which is not hashable
            return make()
        if not known:
            self._memo[key] = make()
        known_value: R = self._memo[key]
        return known_value
