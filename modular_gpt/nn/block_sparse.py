"""Block-sparse attention: each block of queries reads a list of key blocks; other blocks are not computed.

Keys and values are gathered per block of queries, which turns T queries over S keys, (B, H, T, N), into T / b small
problems, (B * T / b, H, b, N), for any attention kernel; no tensor has T x S elements. Two forms:

``Band`` is a sliding window: a block reads the keys just before it, which are slices of the keys and share one mask.
``BlockRule`` is any other pattern (Longformer's global tokens https://arxiv.org/abs/2004.05150, BigBird's random blocks
https://arxiv.org/abs/2007.14062, strides https://arxiv.org/abs/1904.10509, packed documents): a table of the block
numbers to gather, and a predicate on single queries and keys for the mask inside the blocks.

Queries and keys are numbered alike: the T queries are the last T of the S tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST, _LARGEST = 32, 256  # limits of a block, which was fastest at half a window, measured for 16 to 1,024


@dataclass(frozen=True)
class Band:
    """A sliding window in blocks: each block of queries reads the block of its keys and ``reach`` blocks before it.

    head: number of queries before the first block, which have too few keys before them or are the remainder of T / b
    blocks: number of blocks; block: queries per block; first_key: index of the first key that the first block reads
    """

    head: int
    blocks: int
    block: int
    reach: int
    first_key: int

    @classmethod
    def of(cls, n_queries: int, n_keys: int, window: int, block: int) -> "Band":
        """The blocks of queries that see ``window`` keys, their own tokens included."""
        before = n_keys - n_queries
        reach = -(-(window - 1) // block)
        head = max(0, reach * block - before)
        if head >= n_queries:
            return cls(n_queries, 0, block, reach, n_keys)
        head += (n_queries - head) % block
        return cls(head, (n_queries - head) // block, block, reach, before + head - reach * block)

    @property
    def keys(self) -> int:
        """Number of keys that each block reads."""
        return (self.reach + 1) * self.block


def block_size(window: int) -> int:
    """Queries per block for a sliding window: a power of two up to half the window, between 32 and 256.

    Smaller blocks copy each key more often; larger blocks compute more scores that the mask hides.
    """
    size = _SMALLEST
    while size < _LARGEST and 4 * size <= window:
        size *= 2
    return size


def band_attention(
    q: Tensor, k: Tensor, v: Tensor, band: Band, kernel: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Attention of the queries from ``band.head`` on to the keys of their blocks.

    q: (B, H, T, N); k: (B, K, S, N) and v: (B, K, S, M) with K dividing H
    kernel: (B * blocks, H, b, N), (B * blocks, K, L, N), (B * blocks, K, L, M) -> (B * blocks, H, b, M); it masks the
        keys outside the window

    Returns (B, H, T - head, M).
    """
    queries = q[:, :, band.head :].unflatten(2, (band.blocks, band.block)).transpose(1, 2)
    out = kernel(queries.flatten(0, 1), _band_keys(k, band), _band_keys(v, band))
    return _joined(out, q.shape[0])


def _band_keys(x: Tensor, band: Band) -> Tensor:
    """(B, K, S, N) -> (B * blocks, K, L, N): the keys of each block."""
    x = x[:, :, band.first_key :]
    if not (torch.is_grad_enabled() and x.requires_grad):  # a view, copied only where B > 1
        return x.unfold(2, band.keys, band.block).permute(0, 2, 1, 4, 3).flatten(0, 1)
    # the backward pass of slices and a concatenation is much faster than that of unfold
    x = x.unflatten(2, (band.blocks + band.reach, band.block)).transpose(1, 2)
    shifted = [x[:, start : start + band.blocks] for start in range(band.reach + 1)]
    return torch.cat(shifted, dim=3).flatten(0, 1)


def _joined(out: Tensor, batch: int) -> Tensor:
    """(B * blocks, H, b, M) -> (B, H, blocks * b, M)"""
    result: Tensor = out.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
    return result


class BlockRule(ABC):
    """A sparsity pattern: the key blocks that each block of queries gathers, and the mask inside the blocks.

    R is B if the rows of a batch have different patterns, otherwise 1. Every query must see itself.
    """

    block: int

    @abstractmethod
    def table(self, first: int, blocks: int, device: torch.device) -> Tensor:
        """The indices (R, blocks, n) of the key blocks that each of ``blocks`` blocks of queries reads; -1: none.

        first: index of the first query among the keys, a multiple of ``block``. Key block i starts at key i * block and
            occurs at most once in a list.
        """

    @abstractmethod
    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """True where a query sees a key, by their indices: (1, blocks, b, 1), (R, blocks, 1, L) -> (R, blocks, b, L).

        Indices may exceed the last key where the last block is padded.
        """


@dataclass(frozen=True)
class SlidingWindow(BlockRule):
    """Each query sees itself and the ``window - 1`` keys before it."""

    window: int
    block: int

    def table(self, first: int, blocks: int, device: torch.device) -> Tensor:
        lowest = (first - self.window + 1) // self.block
        highest = (first + self.block - 1) // self.block
        listed = torch.arange(lowest, highest + 1, device=device) + torch.arange(blocks, device=device)[:, None]
        return listed.clamp(min=-1)[None]

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        return (distance >= 0) & (distance < self.window)


@dataclass(frozen=True, eq=False)
class Documents(BlockRule):
    """Each query sees itself and the earlier keys of its document, in rows of several packed documents.

    starts: (B, S) index of the first key of the document of each key
    longest: largest number of key blocks in a list; see ``longest_list``
    """

    starts: Tensor
    block: int
    longest: int

    @staticmethod
    def longest_list(starts: Tensor, block: int) -> int:
        """The largest number of key blocks that a block of queries reads. Synchronises with the device."""
        first = starts[:, ::block] // block
        return int((torch.arange(first.shape[1], device=starts.device) - first).amax()) + 1

    def table(self, first: int, blocks: int, device: torch.device) -> Tensor:
        query = first + self.block * torch.arange(blocks, device=device)
        oldest = self.starts[:, query] // self.block  # documents do not overlap: the first query sees furthest back
        newest = (query + self.block - 1) // self.block
        listed = newest[:, None] - torch.arange(self.longest + bool(first % self.block), device=device)
        return torch.where(listed >= oldest[..., None], listed, -1)

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        starts = self.starts[:, query[0].clamp(max=self.starts.shape[1] - 1)]  # (B, blocks, b, 1)
        return (key <= query) & (key >= starts)


@dataclass(frozen=True)
class BlockPlan:
    """The key blocks that each block of queries gathers and the mask inside them, for a number of queries and keys.

    table: (R, blocks, n) indices of key blocks; -1: none
    query: (1, blocks, b, 1) indices of queries; key: (R, blocks, 1, L) indices of gathered keys
    seen: (R, blocks, b, L) True where a query sees a key
    shift: number of queries that pad the first block, so that blocks of queries begin where blocks of keys do
    """

    block: int
    table: Tensor
    query: Tensor
    key: Tensor
    seen: Tensor
    shift: int

    @classmethod
    def of(cls, rule: BlockRule, n_queries: int, n_keys: int, device: torch.device) -> "BlockPlan":
        """The blocks of ``rule`` for queries that are the last ``n_queries`` of ``n_keys`` tokens."""
        block, before = rule.block, n_keys - n_queries
        shift = before % block
        first, blocks = before - shift, -(-(n_queries + shift) // block)
        table = rule.table(first, blocks, device)
        within = torch.arange(block, device=device)
        query = (first + block * torch.arange(blocks, device=device)[:, None] + within)[None, :, :, None]
        key = (table[..., None] * block + within).flatten(2)[:, :, None]  # negative where no block is listed
        # queries that pad the last block see all keys, because a softmax over no keys is NaN; they are dropped later
        seen = (rule.visible(query, key) & (key >= 0) & (key < n_keys)) | (query >= n_keys)
        return cls(block, table, query, key, seen, shift)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: BlockRule | BlockPlan,
    kernel: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Attention in which each block of queries reads the key blocks that ``rule`` lists.

    q: (B, H, T, N); k: (B, K, S, N) and v: (B, K, S, M) with K dividing H
    rule: the pattern, or its plan for T queries and S keys, which layers can share
    kernel: (B * blocks, H, b, N), (B * blocks, K, L, N), (B * blocks, K, L, M), mask (B * blocks, 1, b, L)
        -> (B * blocks, H, b, M)

    Returns (B, H, T, M).
    """
    batch, _, count, _ = q.shape
    plan = rule if isinstance(rule, BlockPlan) else BlockPlan.of(rule, count, k.shape[2], q.device)
    block, shift = plan.block, plan.shift
    queries = F.pad(q, (0, 0, shift, -(count + shift) % block)).unflatten(2, (-1, block)).transpose(1, 2)
    seen = plan.seen.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    keys, values = _gathered(k, plan.table, block), _gathered(v, plan.table, block)
    return _joined(kernel(queries.flatten(0, 1), keys, values, seen), batch)[:, :, shift : shift + count]


def _gathered(x: Tensor, table: Tensor, block: int) -> Tensor:
    """(B, K, S, N) -> (B * blocks, K, n * b, N): the key blocks in the table; an arbitrary block for -1."""
    batch, _, n_keys, _ = x.shape
    x = F.pad(x, (0, 0, 0, -n_keys % block)).unflatten(2, (-1, block)).transpose(1, 2)  # (B, S / b, K, b, N)
    table = table.clamp(0, x.shape[1] - 1)  # the mask hides blocks that are not listed
    rows = torch.arange(batch, device=x.device)[:, None] * x.shape[1] + table.flatten(1)
    blocks = x.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, *table.shape[1:]))
    out: Tensor = blocks.transpose(2, 3).flatten(3, 4).flatten(0, 1)
    return out
