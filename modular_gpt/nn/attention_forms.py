"""Ways to compute one attention without a mask of T x S numbers, by smaller attentions that say the same.

``by_window``: a sliding window in blocks (see ``block_sparse``).
``text_first``: left padding moved to the right, where causality hides it.
``by_rows``: queries in chunks, each with the keys up to its last query.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modular_gpt.core.contracts import Position, Positions
from modular_gpt.nn.block_sparse import Band, band_attention


@dataclass(frozen=True)
class AttentionInputs:
    """What one attention reads: T queries over S keys.

    q: (B, H, T, N); k: (B, K, S, N) and v: (B, K, S, M) with K dividing H
    pos: where the queries stand; key_columns: (S,) the column of each key
    window: keys that a query sees, its own included; None: all before it
    """

    q: Tensor
    k: Tensor
    v: Tensor
    pos: Positions
    key_columns: Tensor
    window: int | None

    @property
    def n_queries(self) -> int:
        return self.q.shape[2]

    @property
    def n_keys(self) -> int:
        return self.k.shape[2]

    def part(self, first: int, count: int, keys: slice) -> "AttentionInputs":
        """``count`` queries from ``first`` on, over some of the keys."""
        return replace(
            self,
            q=self.q[:, :, first : first + count],
            k=self.k[:, :, keys],
            v=self.v[:, :, keys],
            pos=self.pos.narrow(first, count),
            key_columns=self.key_columns[keys],
        )


@dataclass(frozen=True)
class ScoreBias:
    """What a position adds to scores, made for whichever queries and keys are asked for.

    n_heads: of the whole model; heads: those that are computed here, None for all
    """

    position: Position
    n_heads: int
    heads: slice | None = None

    def __call__(self, pos: Positions, key_columns: Tensor) -> Tensor | None:
        """(1, H, T, S), or None where the position adds nothing."""
        bias = self.position.bias(pos, key_columns, self.n_heads)
        return bias if bias is None or self.heads is None else bias[:, self.heads]


Dense = Callable[[AttentionInputs], Tensor]
Masked = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q, k, v, seen, bias


def visible(pos: Positions, key_columns: Tensor, window: int | None) -> Tensor:
    """(B or 1, 1, T, S) True where a query may look at a key. Every query sees itself, also padding."""
    return _visible(pos.columns[None], key_columns[None], pos.padding, window)[:, None]


def _visible(columns: Tensor, key_columns: Tensor, padding: Tensor | None, window: int | None) -> Tensor:
    """(R, T), (R, S) -> (R, T, S), or with padding (B,), (B or B * R, T, S) where R is 1 or more."""
    distance = columns[:, :, None] - key_columns[:, None, :]
    seen = (distance >= 0) & (key_columns >= 0)[:, None]
    if window is not None:
        seen &= distance < window
    if padding is None:
        return seen
    text = key_columns >= padding[:, None, None]  # (B, R, S)
    return ((seen & text[:, :, None]) | (distance == 0)).flatten(0, 1)


def needs_mask(pos: Positions, n_keys: int, window: int | None) -> bool:
    """False when plain causal attention, or attention to all keys by one query, says the same as ``visible``."""
    if pos.padding is not None or isinstance(pos.start, Tensor):
        return True
    if window is not None and n_keys > window:
        return True
    return not (pos.is_prefill and n_keys == pos.count) and pos.count > 1


def by_window(inputs: AttentionInputs, band: Band, dense: Dense, masked: Masked, bias: ScoreBias | None) -> Tensor:
    """A sliding window over keys of consecutive columns: (B, H, T, M)."""
    keys = slice(band.first_key, band.first_key + band.keys)
    first = inputs.pos.narrow(band.head, band.block)
    columns = inputs.key_columns

    def seen() -> Tensor:
        if inputs.pos.padding is None:  # the same in every block
            return visible(first, columns[keys], inputs.window)
        queries = inputs.pos.columns[band.head :].unflatten(0, (-1, band.block))
        near = columns[band.first_key :].unfold(0, band.keys, band.block)
        return _visible(queries, near, inputs.pos.padding, inputs.window)[:, None]

    mask = inputs.pos.memo(("band", band, inputs.window), seen)
    added = None if bias is None else _band_bias(inputs, band, bias)
    out = band_attention(inputs.q, inputs.k, inputs.v, band, lambda q, k, v: masked(q, k, v, mask, added))
    if not band.head:
        return out
    before = inputs.n_keys - inputs.n_queries
    return torch.cat([dense(inputs.part(0, band.head, slice(before + band.head))), out], dim=2)


def _band_bias(inputs: AttentionInputs, band: Band, bias: ScoreBias) -> Tensor | None:
    """(1, H, b, L) where distances alone count, which are alike in all blocks; else (B * blocks, H, b, L)."""

    def block(index: int) -> Tensor | None:
        first = band.first_key + index * band.block
        pos = inputs.pos.narrow(band.head + index * band.block, band.block)
        return bias(pos, inputs.key_columns[first : first + band.keys])

    if bias.position.slides:
        return block(0)
    blocks = [found for index in range(band.blocks) if (found := block(index)) is not None]
    return torch.cat(blocks).repeat(inputs.q.shape[0], 1, 1, 1) if blocks else None


def by_rows(inputs: AttentionInputs, rows: int, dense: Dense) -> Tensor:
    """Queries in chunks of ``rows``, each with the keys from its first query's window to its last query.

    Masks live as long as their chunk; the keys after it, half of all in a long text, cost nothing.
    """
    before, window = inputs.n_keys - inputs.n_queries, inputs.window
    outs = []
    for first in range(0, inputs.n_queries, rows):
        count = min(rows, inputs.n_queries - first)
        oldest = 0 if window is None else max(0, before + first - window + 1)
        chunk = inputs.part(first, count, slice(oldest, before + first + count))
        outs.append(dense(replace(chunk, pos=chunk.pos.without_memo())))
    return torch.cat(outs, dim=2)


def text_first(inputs: AttentionInputs, attend: Dense) -> Tensor:
    """Attention of a left-padded batch to itself alone: rows turn until their text comes first, and back.

    What padding columns attend to differs from what a mask would give them, and nothing reads it.
    """
    pos, count = inputs.pos, inputs.n_queries
    padding = pos.padding
    assert padding is not None
    turn = pos.memo("text first", lambda: (pos.columns + padding[:, None]) % count)
    back = pos.memo("text last", lambda: (pos.columns - padding[:, None]) % count)
    q, k, v = (_reorder(x, turn) for x in (inputs.q, inputs.k, inputs.v))
    return _reorder(attend(replace(inputs, q=q, k=k, v=v, pos=pos.unpadded())), back)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    """(B, heads, T, N) with its tokens in the order (B, T)."""
    rows = torch.arange(len(order), device=order.device)[:, None] * order.shape[1] + order
    found = x.transpose(1, 2).flatten(0, 1).index_select(0, rows.flatten())
    return found.unflatten(0, order.shape).transpose(1, 2)
