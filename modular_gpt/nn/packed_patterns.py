"""Block-sparse patterns in each of several documents that are packed into one row.

The documents are laid out with gaps, so that each begins at a multiple of the block. Its queries then read the key
blocks of a single document, shifted by the index of the block in which it begins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.nn.block_sparse import BlockRule
from modular_gpt.nn.sparse_patterns import SparsePattern


@dataclass(frozen=True, eq=False)
class PackedLayout:
    """Slots of the tokens of packed documents, with gaps up to the next multiple of ``block`` after each document.

    slot: (B, T) slot of each column; column: (B, A) column of each of the A slots, 0 in gaps
    origin: (B, A / block) index of the block in which the document of each block begins
    longest: number of blocks of the longest document
    """

    block: int
    slot: Tensor
    column: Tensor
    origin: Tensor
    longest: int

    @classmethod
    def of(cls, starts: Tensor, block: int) -> "PackedLayout":
        """The layout of packed documents. Synchronises with the device.

        starts: (B, T) column at which the document of each column begins
        """
        columns = torch.arange(starts.shape[1], device=starts.device)
        within = (columns - starts) % block
        block_index = (within == 0).cumsum(dim=1) - 1  # of each column
        slot = block_index * block + within
        first = block_index.gather(1, starts)
        blocks, longest = torch.stack([block_index.amax(), (block_index - first).amax()]).tolist()
        origin = torch.arange(blocks + 1, device=starts.device).repeat(len(starts), 1)
        origin.scatter_(1, block_index, first)
        column = torch.zeros(len(starts), (blocks + 1) * block, dtype=torch.long, device=starts.device)
        column.scatter_(1, slot, columns.expand_as(slot))
        return cls(block, slot, column, origin, longest + 1)

    @property
    def slots(self) -> int:
        """A, the number of slots of a row."""
        return self.column.shape[1]


@dataclass(frozen=True, eq=False)
class PackedPattern(BlockRule):
    """A pattern within each document of a ``PackedLayout``, for all of its slots at once."""

    pattern: SparsePattern
    layout: PackedLayout
    block: int

    def table(self, first: int, blocks: int, device: torch.device) -> Tensor:
        origin = self.layout.origin  # (B, blocks)
        index = torch.arange(blocks, device=device) - origin
        listed = self.pattern.listed(index.flatten()[:, None], self.layout.longest - 1).unflatten(0, index.shape)
        return torch.where(listed >= 0, listed + origin[..., None], -1)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        begin = self.layout.origin[..., None, None] * self.block
        return self.pattern.visible(query - begin, key - begin)
