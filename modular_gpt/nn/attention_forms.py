"""Algorithms that compute attention by equivalent smaller attentions, without a mask of T x S elements.

``by_window``: a sliding window in blocks (see ``block_sparse``).
``by_pattern``: any other pattern in blocks; ``by_packed_pattern``: in each of several packed documents.
``text_first``: left padding is moved to the right, where the causal mask hides it.
``by_rows``: queries in chunks, each with the keys up to its last query.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from modular_gpt.core.activation_checkpointing import checkpointed
from modular_gpt.core.contracts import Position, Positions
from modular_gpt.nn.block_sparse import Band, BlockPlan, band_attention, block_sparse_attention
from modular_gpt.nn.packed_patterns import PackedLayout, PackedPattern
from modular_gpt.nn.sparse_patterns import SparsePattern


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of one attention of T queries over S keys.

    q: (B, H, T, N); k: (B, K, S, N) and v: (B, K, S, M) with K dividing H
    pos: positions of the queries; key_columns: (S,) column of each key, or (B or 1, S) where rows differ
    window: number of keys that a query sees, its own included; None: all earlier ones
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

    def narrow(self, first: int, count: int, keys: slice) -> "AttentionInputs":
        """The inputs of queries ``first`` to ``first + count - 1`` over the keys in the slice ``keys``."""
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
    """The bias that a position adds to attention scores, computed for given queries and keys.

    n_heads: number of heads of the whole layer; heads: the heads that this process computes; None: all
    """

    position: Position
    n_heads: int
    heads: slice | None = None

    def __call__(self, pos: Positions, key_columns: Tensor) -> Tensor | None:
        """The bias (1 or B, H, T, S), or (B, H, T, S) for key_columns (B, S); None if the position adds none."""
        if key_columns.ndim == 2:  # without the memo, whose keys do not contain the columns
            biases = [self(pos.without_memo(), columns) for columns in key_columns]
            rows = [row if row.shape[0] == 1 else row[i : i + 1] for i, row in enumerate(biases) if row is not None]
            return torch.cat(rows) if rows else None
        bias = self.position.bias(pos, key_columns, self.n_heads)
        return bias if bias is None or self.heads is None else bias[:, self.heads]


Dense = Callable[[AttentionInputs], Tensor]
Masked = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]  # q, k, v, seen, bias


def visible(pos: Positions, key_columns: Tensor, window: int | None) -> Tensor:
    """The mask (B or 1, 1, T, S), True where a query sees a key. Every query sees itself, also in padding columns."""
    return _visible(pos, pos.columns[None], key_columns[None], window)[:, None]


def _visible(pos: Positions, columns: Tensor, key_columns: Tensor, window: int | None) -> Tensor:
    """Masks for columns (R, T) and key_columns (R, S): (R, T, S), with padding or documents (B * R, T, S)."""
    distance = columns[:, :, None] - key_columns[:, None, :]
    seen = (distance >= 0) & (key_columns >= 0)[:, None]
    if window is not None:
        seen &= distance < window
    if pos.document_starts is not None:
        starts = pos.document_starts[:, columns]  # (B, R, T)
        return (seen & (key_columns[:, None, :] >= starts[..., None])).flatten(0, 1)
    padding = pos.padding
    if padding is None:
        return seen
    text = key_columns >= padding[:, None, None]  # (B, R, S)
    return ((seen & text[:, :, None]) | (distance == 0)).flatten(0, 1)


def visible_in_pattern(pos: Positions, key_columns: Tensor, pattern: SparsePattern, window: int | None) -> Tensor:
    """The mask (B or 1, 1, T, S), True where a query sees a key by a pattern, for key_columns (S,) or (B or 1, S).

    Padding sees all keys, because a softmax over no keys is NaN; its outputs are never read.

    window: largest number of keys that a query sees beside the anchors; None: only the pattern limits it
    """
    query = pos.index[:, None, :, None]
    key = (key_columns if key_columns.ndim == 2 else key_columns[None])[:, None, None]
    if pos.padding is not None:
        key = key - pos.padding[:, None, None, None]
    if pos.document_starts is not None:  # positions in the document of the query; those of earlier ones are negative
        key = key - pos.document_starts[:, pos.columns][:, None, :, None]
    seen = pattern.visible(query, key) & (key >= 0)
    if window is not None:
        seen &= (query - key < window) | (key < pattern.anchors)
    return seen if pos.padding is None else seen | (query < 0)


def seen_keys(inputs: AttentionInputs, pattern: SparsePattern | None) -> Tensor:
    """The mask (B or 1, 1, T, S), True where a query sees a key; computed once per forward pass for all layers."""
    pos, columns, window = inputs.pos, inputs.key_columns, inputs.window
    if pattern is None:
        return pos.memo(("visible", window, inputs.n_keys), lambda: visible(pos, columns, window))
    return pos.memo(
        ("visible", pattern, window, inputs.n_keys, columns.ndim),
        lambda: visible_in_pattern(pos, columns, pattern, window),
    )


def needs_mask(pos: Positions, n_keys: int, window: int | None) -> bool:
    """False where plain causal attention, or attention of one query to all keys, is equivalent to ``visible``."""
    if pos.padding is not None or pos.document_starts is not None or isinstance(pos.start, Tensor):
        return True
    if window is not None and n_keys > window:
        return True
    return not (pos.is_prefill and n_keys == pos.count) and pos.count > 1


def by_window(inputs: AttentionInputs, band: Band, dense: Dense, masked: Masked, bias: ScoreBias | None) -> Tensor:
    """Sliding-window attention in blocks, over keys of consecutive columns. Returns (B, H, T, M)."""
    keys = slice(band.first_key, band.first_key + band.keys)
    first = inputs.pos.narrow(band.head, band.block)
    columns = inputs.key_columns

    def seen() -> Tensor:
        if inputs.pos.padding is None and inputs.pos.document_starts is None:  # the same mask in every block
            return visible(first, columns[keys], inputs.window)
        queries = inputs.pos.columns[band.head :].unflatten(0, (-1, band.block))
        near = columns[band.first_key :].unfold(0, band.keys, band.block)
        return _visible(inputs.pos, queries, near, inputs.window)[:, None]

    mask = inputs.pos.memo(("band", band, inputs.window), seen)
    added = None if bias is None else _band_bias(inputs, band, bias)
    out = band_attention(inputs.q, inputs.k, inputs.v, band, lambda q, k, v: masked(q, k, v, mask, added))
    if not band.head:
        return out
    before = inputs.n_keys - inputs.n_queries
    return torch.cat([dense(inputs.narrow(0, band.head, slice(before + band.head))), out], dim=2)


def _band_bias(inputs: AttentionInputs, band: Band, bias: ScoreBias) -> Tensor | None:
    """The bias of blocks: (1, H, b, L), shared by all, if it depends on distances alone; else (B * blocks, H, b, L)."""

    def block(index: int) -> Tensor | None:
        first = band.first_key + index * band.block
        pos = inputs.pos.narrow(band.head + index * band.block, band.block)
        return bias(pos, inputs.key_columns[first : first + band.keys])

    if bias.position.slides:
        return block(0)
    blocks = [bias_of_block for index in range(band.blocks) if (bias_of_block := block(index)) is not None]
    rows = [bias_of_block.expand(inputs.q.shape[0], -1, -1, -1) for bias_of_block in blocks]
    return torch.stack(rows, dim=1).flatten(0, 1) if blocks else None


def fits_blocks(inputs: AttentionInputs, pattern: SparsePattern, beyond: int) -> bool:
    """Whether a pattern can be computed in blocks that read at least ``beyond`` fewer keys than a mask covers.

    This needs rows of one text each, with all keys from the first column on, and no padding.
    """
    pos, n_keys = inputs.pos, inputs.n_keys
    if pos.padding is not None or pos.document_starts is not None or (inputs.window or n_keys) < n_keys:
        return False
    gathered = pattern.block * pattern.n_blocks((n_keys - 1) // pattern.block)
    return bool(n_keys == pos.start + pos.count and n_keys >= gathered + beyond)


def by_pattern(inputs: AttentionInputs, pattern: SparsePattern, masked: Masked, bias: ScoreBias | None) -> Tensor:
    """Attention in blocks to the keys of a pattern, over all columns from the first on. Returns (B, H, T, M)."""
    plan = inputs.pos.memo(
        ("blocks", pattern, inputs.n_keys),
        lambda: BlockPlan.of(pattern, inputs.n_queries, inputs.n_keys, inputs.q.device),
    )
    added = None if bias is None else _plan_bias(inputs, plan, bias)
    return block_sparse_attention(
        inputs.q, inputs.k, inputs.v, plan, lambda q, k, v, seen: masked(q, k, v, seen, added)
    )


def packed_layout(inputs: AttentionInputs, pattern: SparsePattern, beyond: int) -> PackedLayout | None:
    """The layout for a pattern in packed documents; None where blocks save less than ``beyond`` keys for each query."""
    pos, starts, n_keys = inputs.pos, inputs.pos.document_starts, inputs.n_keys
    if starts is None or not pos.is_prefill or (inputs.window or n_keys) < n_keys or torch.compiler.is_compiling():
        return None
    layout = pos.memo(("packed", pattern.block), lambda: PackedLayout.of(starts, pattern.block))
    gathered = layout.block * pattern.n_blocks(layout.longest - 1)
    return layout if n_keys * n_keys >= layout.slots * gathered + beyond * n_keys else None


def by_packed_pattern(
    inputs: AttentionInputs, pattern: SparsePattern, layout: PackedLayout, masked: Masked, bias: ScoreBias | None
) -> Tensor:
    """Attention in blocks to the keys of a pattern, in each document of a layout. Returns (B, H, T, M)."""
    rule = PackedPattern(pattern, layout, layout.block)
    plan = inputs.pos.memo(
        ("packed blocks", pattern), lambda: BlockPlan.of(rule, layout.slots, layout.slots, inputs.q.device)
    )
    added = None if bias is None else _plan_bias(inputs, plan, bias)
    q, k, v = (_reorder(x, layout.column) for x in (inputs.q, inputs.k, inputs.v))
    out = block_sparse_attention(q, k, v, plan, lambda q, k, v, seen: masked(q, k, v, seen, added))
    return _reorder(out, layout.slot)


def _plan_bias(inputs: AttentionInputs, plan: BlockPlan, bias: ScoreBias) -> Tensor | None:
    """The bias (B * blocks, H, b, L) on the scores of gathered keys; None if the position adds none."""
    last = inputs.n_keys - 1
    if bias.position.slides:  # the bias depends on distances alone, and the row of the last query has all of them
        row = bias(inputs.pos.narrow(inputs.n_queries - 1, 1), inputs.key_columns)
        if row is None:
            return None
        distance = (plan.query - plan.key).clamp(0, last).flatten(0, 1)  # (R * blocks, b, L)
        return row[0, :, 0, last - distance].transpose(0, 1).repeat(inputs.q.shape[0] // len(plan.table), 1, 1, 1)
    block, device, blocks = plan.block, inputs.q.device, []
    for index, keys in enumerate(plan.key[0, :, 0]):
        start = inputs.n_keys - inputs.n_queries - plan.shift + index * block
        bias_of_block = bias(Positions(start, block, None, device, inputs.pos.window), keys.clamp(0, last))
        blocks += [] if bias_of_block is None else [bias_of_block]
    return torch.cat(blocks).repeat(inputs.q.shape[0], 1, 1, 1) if blocks else None


def by_rows(inputs: AttentionInputs, rows: int, dense: Dense, recompute: bool = False) -> Tensor:
    """Attention of chunks of ``rows`` queries, each over the keys from its first query's window to its last query.

    A mask is freed after its chunk. Scores with keys after a chunk, half of all in a long prompt, are not computed.

    recompute: save only queries, keys and values for the backward pass, which computes each chunk again
    """
    before, window = inputs.n_keys - inputs.n_queries, inputs.window
    outs = []
    for first in range(0, inputs.n_queries, rows):
        count = min(rows, inputs.n_queries - first)
        oldest = 0 if window is None else max(0, before + first - window + 1)
        attend = partial(_chunk, inputs.narrow(first, count, slice(oldest, before + first + count)), dense)
        queries = inputs.q[:, :, first : first + count]
        outs.append(checkpointed(attend, queries) if recompute else attend(queries))
    return torch.cat(outs, dim=2)


def _chunk(inputs: AttentionInputs, dense: Dense, q: Tensor) -> Tensor:
    """Attention of the queries ``q`` with an empty memo, so that the masks of this chunk are freed after it."""
    return dense(replace(inputs, q=q, pos=inputs.pos.without_memo()))


def text_first(inputs: AttentionInputs, attend: Dense) -> Tensor:
    """Attention of a left-padded batch without cached keys, with each row rotated so that its text comes first.

    The outputs of padding columns differ from those with a mask; they are never read.
    """
    pos, count = inputs.pos, inputs.n_queries
    padding = pos.padding
    assert padding is not None
    turn = pos.memo("text first", lambda: (pos.columns + padding[:, None]) % count)
    back = pos.memo("text last", lambda: (pos.columns - padding[:, None]) % count)
    q, k, v = (_reorder(x, turn) for x in (inputs.q, inputs.k, inputs.v))
    return _reorder(attend(replace(inputs, q=q, k=k, v=v, pos=pos.unpadded())), back)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    """(B, heads, T, N) -> (B, heads, T', N): the tokens of each row at the indices ``order`` (B, T')."""
    rows = torch.arange(len(order), device=order.device)[:, None] * x.shape[2] + order
    gathered = x.transpose(1, 2).flatten(0, 1).index_select(0, rows.flatten())
    out: Tensor = gathered.unflatten(0, order.shape).transpose(1, 2)
    return out
