"""Patterns of block-sparse attention, which select the earlier tokens that a query sees by positions in the text.

A pattern is a frozen dataclass whose fields are its settings, so that layers with equal settings share tables and
masks. ``PATTERNS`` names them.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modular_gpt.nn.block_sparse import BlockRule

_HASH_BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class SparsePattern(BlockRule):
    """A pattern, made causal: no query sees a later key.

    block: queries and keys per block
    """

    block: int = 32

    @property
    def anchors(self) -> int:
        """Number of first tokens of a text that all later ones see."""
        return 0

    @property
    def reach(self) -> int | None:
        """Number of last tokens, the query's included, that contain all keys it sees but the anchors; None: all."""
        return None

    @abstractmethod
    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        """True where a query sees a key, by their positions, for keys that are not after the query."""

    @abstractmethod
    def key_blocks(self, block_index: Tensor, last: int) -> list[Tensor]:
        """Lists (blocks, n) of the indices of key blocks that contain all keys seen by each block of queries.

        Indices may repeat, be negative, or be larger than those of the queries.

        block_index: (blocks, 1) indices of the blocks of queries; last: the largest of them
        """

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        return self.seen(query, key) & (key <= query)

    def table(self, first: int, blocks: int, device: torch.device) -> Tensor:
        block_index = first // self.block + torch.arange(blocks, device=device)[:, None]
        return self.listed(block_index, first // self.block + blocks - 1)[None]

    def listed(self, block_index: Tensor, last: int) -> Tensor:
        """The indices (blocks, n) of the key blocks that each block of queries reads, without repetition; -1: none.

        block_index, last: as for ``key_blocks``
        """
        listed = torch.cat(self.key_blocks(block_index, last), dim=1)
        listed = listed.masked_fill(listed > block_index, -1).clamp(min=-1).sort(dim=1).values
        repeated = F.pad(listed[:, 1:] == listed[:, :-1], (1, 0))
        return listed.masked_fill(repeated, -1)

    @abstractmethod
    def n_blocks(self, last: int) -> int:
        """The number of key blocks per block of queries, repeated ones included: the sum of n over ``key_blocks``."""

    def _blocks_back(self, block_index: Tensor, tokens: int) -> Tensor:
        """The block of the queries and the blocks before it that contain the ``tokens`` keys before each query."""
        return block_index - torch.arange(self._n_back(tokens), device=block_index.device)

    def _first_blocks(self, block_index: Tensor, tokens: int) -> Tensor:
        """The blocks that contain the first ``tokens`` keys."""
        return torch.arange(-(-tokens // self.block), device=block_index.device).expand(len(block_index), -1)

    def _n_back(self, tokens: int) -> int:
        return -(-tokens // self.block) + 1


@dataclass(frozen=True)
class Streaming(SparsePattern):
    """The first ``global_tokens`` tokens, which act as attention sinks, and the last ``window`` ones."""

    window: int = 64
    global_tokens: int = 4

    @property
    def anchors(self) -> int:
        return self.global_tokens

    @property
    def reach(self) -> int | None:
        return self.window

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        return (query - key < self.window) | (key < self.global_tokens)

    def key_blocks(self, block_index: Tensor, last: int) -> list[Tensor]:
        return [self._blocks_back(block_index, self.window - 1), self._first_blocks(block_index, self.global_tokens)]

    def n_blocks(self, last: int) -> int:
        return self._n_back(self.window - 1) - (-self.global_tokens // self.block)


@dataclass(frozen=True)
class Longformer(SparsePattern):
    """``window`` keys at distances that are multiples of ``dilation``, and the first ``global_tokens`` tokens."""

    window: int = 64
    dilation: int = 1
    global_tokens: int = 16

    @property
    def anchors(self) -> int:
        return self.global_tokens

    @property
    def reach(self) -> int | None:
        return (self.window - 1) * self.dilation + 1

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        near = distance < self.window * self.dilation
        return (near & (distance % self.dilation == 0)) | (key < self.global_tokens)

    def key_blocks(self, block_index: Tensor, last: int) -> list[Tensor]:
        before = (self.window - 1) * self.dilation
        return [self._blocks_back(block_index, before), self._first_blocks(block_index, self.global_tokens)]

    def n_blocks(self, last: int) -> int:
        return self._n_back((self.window - 1) * self.dilation) - (-self.global_tokens // self.block)


@dataclass(frozen=True)
class BigBird(SparsePattern):
    """The last ``window`` tokens, the first ``global_tokens``, and ``random_blocks`` blocks drawn from those between.

    A block of queries draws from ``seed`` and its index alone, so that the pattern depends neither on the length of the
    text nor on the chunks in which it is read.
    """

    window: int = 64
    global_tokens: int = 16
    random_blocks: int = 2
    seed: int = 0

    @property
    def anchors(self) -> int:
        return self.global_tokens

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        found = (query - key < self.window) | (key < self.global_tokens)
        block = torch.div(key, self.block, rounding_mode="floor")
        for drawn in self._drawn(torch.div(query, self.block, rounding_mode="floor")):
            found = found | (block == drawn)
        return found

    def key_blocks(self, block_index: Tensor, last: int) -> list[Tensor]:
        near = self._blocks_back(block_index, self.window - 1)
        return [near, self._first_blocks(block_index, self.global_tokens), *self._drawn(block_index)]

    def n_blocks(self, last: int) -> int:
        return self._n_back(self.window - 1) - (-self.global_tokens // self.block) + self.random_blocks

    def _drawn(self, block_index: Tensor) -> list[Tensor]:
        """A random block from each of ``random_blocks`` equal ranges between global tokens and window; -2: none."""
        lowest = -(-self.global_tokens // self.block)
        free = (block_index + (1 - self.window) // self.block - lowest).clamp(min=0)
        draws = []
        for index in range(self.random_blocks):
            start = free * index // self.random_blocks
            size = free * (index + 1) // self.random_blocks - start
            number = _hashed(block_index * self.random_blocks + index, self.seed) % size.clamp(min=1)
            draws.append(torch.where(size > 0, lowest + start + number, -2))
        return draws


@dataclass(frozen=True)
class Strided(SparsePattern):
    """The last ``window`` tokens, and every ``stride``-th block counted back from that of the query."""

    window: int = 64
    stride: int = 4

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        back = torch.div(query, self.block, rounding_mode="floor") - torch.div(key, self.block, rounding_mode="floor")
        return (query - key < self.window) | (back % self.stride == 0)

    def key_blocks(self, block_index: Tensor, last: int) -> list[Tensor]:
        strides = torch.arange(last // self.stride + 1, device=block_index.device) * self.stride
        return [self._blocks_back(block_index, self.window - 1), block_index - strides]

    def n_blocks(self, last: int) -> int:
        return self._n_back(self.window - 1) + last // self.stride + 1


@dataclass(frozen=True)
class Chunked(SparsePattern):
    """The earlier tokens of the query's chunk, in a text divided into chunks of ``chunk`` tokens."""

    chunk: int = 64

    @property
    def reach(self) -> int | None:
        return self.chunk

    def seen(self, query: Tensor, key: Tensor) -> Tensor:
        query_chunk, key_chunk = (torch.div(index, self.chunk, rounding_mode="floor") for index in (query, key))
        return query_chunk == key_chunk

    def key_blocks(self, block_index: Tensor, last: int) -> list[Tensor]:
        return [self._blocks_back(block_index, self.chunk - math.gcd(self.chunk, self.block))]

    def n_blocks(self, last: int) -> int:
        return self._n_back(self.chunk - math.gcd(self.chunk, self.block))


PATTERNS: dict[str, type[SparsePattern]] = {
    "bigbird": BigBird,
    "longformer": Longformer,
    "strided": Strided,
    "streaming": Streaming,
    "chunked": Chunked,
}


def _hashed(number: Tensor, seed: int) -> Tensor:
    """A pseudo-random number below 2**32 for each integer and seed, by mixing bits in 64-bit integers."""
    x = (number + (0x9E3779B9 * (seed + 1) & _HASH_BITS)) & _HASH_BITS
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & _HASH_BITS
    return x ^ (x >> 16)
