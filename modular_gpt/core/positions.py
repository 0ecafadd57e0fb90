"""Where the new tokens of one forward pass stand."""

from collections.abc import Callable, Hashable
from copy import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

R = TypeVar("R")


class Positions:
    """Where the new tokens of one forward pass stand. Masks, rotations and biases all derive from it.

    A token has a column (its place in the batch, left padding included) and a position (its place in its
    own text): position = column - padding of the row. Padding columns have negative positions.

    start: columns before the new tokens; a 0-dim tensor where one compiled graph serves every step
    count: T, the number of new tokens
    padding: (B,) left-padding columns of each row, or None when no row is padded
    window: no query sees more keys than this in any layer, its own included; None when only layers limit them
    """

    def __init__(
        self,
        start: int | Tensor,
        count: int,
        padding: Tensor | None,
        device: torch.device,
        window: int | None = None,
    ) -> None:
        self.start = start
        self.count = count
        self.padding = padding
        self.window = window
        self.columns = torch.arange(count, device=device) + start  # (T,)
        self.index = self.columns[None] if padding is None else self.columns[None] - padding[:, None]  # (B or 1, T)
        self._memo: dict[Hashable, Any] = {}

    @property
    def is_prefill(self) -> bool:
        """No token stands before the new ones, a fact known without looking at a tensor."""
        return isinstance(self.start, int) and self.start == 0

    def limit(self, window: int | None) -> int | None:
        """How many keys a query sees in a layer with this window; None for all."""
        if window is None or self.window is None:
            return self.window if window is None else window
        return min(window, self.window)

    def valid(self) -> Tensor | None:
        """(B, T) True where a token is text and not padding; None when all are text."""
        return None if self.padding is None else self.index >= 0

    def without_memo(self) -> "Positions":
        """The same positions for one layer that shares nothing with others, so that it can be computed again."""
        same = copy(self)
        same._memo = {}
        return same

    def narrow(self, first: int, count: int) -> "Positions":
        """The positions of ``count`` of the new tokens, from ``first`` on."""
        return self.memo(
            ("narrow", first, count),
            lambda: Positions(self.start + first, count, self.padding, self.columns.device, self.window),
        )

    def unpadded(self) -> "Positions":
        """The positions where no row is padded."""
        return self.memo("unpadded", lambda: Positions(self.start, self.count, None, self.columns.device, self.window))

    def memo(self, key: Hashable, make: Callable[[], R]) -> R:
        """What ``make`` returns, computed by the first layer that asks and shared with the later ones."""
        try:
            known = key in self._memo
        except TypeError:  # while a program is exported, a size may be a symbol, which cannot be looked up
            return make()
        if not known:
            self._memo[key] = make()
        return cast(R, self._memo[key])
