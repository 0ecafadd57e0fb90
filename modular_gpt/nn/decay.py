"""Decays of recurrent memories in chunks of tokens: the factors between any two tokens, and between chunks.

A memory S_t = a_t S_{t-1} + ... with 0 < a_t <= 1 is computed in chunks: by matrix products within a chunk, and through
the memory between chunks. All factors are exponentials of differences that are never positive: they do not overflow,
and a factor too small for the data type is exactly zero, with zero gradients.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_CHUNK = 2  # tokens, below which a chunk is not halved: the fastest of 2 to 16 on a CPU


@dataclass(frozen=True)
class ChunkDecays:
    """Factors by which memories decay in chunks of C tokens, see ``chunked``; N is 1 if all channels decay alike.

    A factor is 0 if a document ends between the two points that it connects.

    total: (B or 1, H, chunks, C, N) logarithm of the decay over the chunk up to each token
    same: (B, 1, chunks, C, C) whether two tokens belong to one document; None: each row is one document
    since: (B or 1, H, chunks, C, N) from the end of the chunk before to each token, that token's decay included
    until: (B or 1, H, chunks, C, N) from each token to the end of its chunk
    whole: (B or 1, H, chunks, N) over a chunk
    logs: (B or 1, H, chunks, N) logarithm of ``whole`` without regard to documents
    """

    total: Tensor
    same: Tensor | None
    since: Tensor
    until: Tensor
    whole: Tensor
    logs: Tensor

    @classmethod
    def of(cls, log_decay: Tensor, chunk: int, starts: Tensor | None) -> "ChunkDecays":
        """The factors of chunks of ``chunk`` tokens.

        log_decay: (B or 1, H, T, N) logarithm of each token's decay
        starts: (B, T) index of the first token of each token's document; None: each row is one document
        """
        total = chunked(log_decay, chunk).cumsum(-2)  # over the chunk up to each token
        last = total[..., -1:, :]
        same = None
        since, until, whole = total.exp(), (last - total).exp(), last[..., 0, :].exp()
        if starts is not None:
            begin = F.pad(starts, (0, -starts.shape[1] % chunk), mode="replicate").unflatten(1, (-1, chunk))[:, None]
            before = F.pad(begin[..., :-1, -1], (1, 0), value=-1)[..., None]  # document open before each chunk
            same = begin[..., :, None] == begin[..., None, :]
            since = since * (begin == before)[..., None]
            until = until * (begin == begin[..., -1:])[..., None]
            whole = whole * (begin[..., -1:] == before)
        return cls(total, same, since, until, whole, last[..., 0, :])

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (B, H, chunks, C, N) -> (B, H, chunks, C, C): a_i . b_j times the decay from j to i; 0 where j > i."""
        if self.total.shape[-1] == 1:
            factors = _between(self.total[..., 0][..., :, None], self.total[..., 0][..., None, :])
            products = (a @ b.transpose(-1, -2)) * factors
        else:
            products = _products_by_channel(a, b, self.total)
        return products if self.same is None else products * self.same


def _between(later: Tensor, earlier: Tensor) -> Tensor:
    """exp(later - earlier) for tokens i and j in the dimensions -2 and -1, 0 where j > i."""
    difference = later - earlier
    hidden = torch.ones(difference.shape[-2:], dtype=torch.bool, device=difference.device).triu(1)
    return difference.masked_fill(hidden, -torch.inf).exp()


def _products_by_channel(a: Tensor, b: Tensor, total: Tensor) -> Tensor:
    """a, b, total (..., C, N) -> (..., C, C): sum over channels of a_i b_j exp(total_i - total_j); 0 where j > i.

    A chunk is halved recursively. Between two halves the decay is split at their border into two factors, neither of
    them above 1, and the sum becomes a product of matrices. Only the smallest chunks need a factor for each pair of
    tokens and channel.
    """
    count = a.shape[-2]
    if torch.compiler.is_exporting() or count <= _SMALLEST_CHUNK or count % 2:
        channels = total.transpose(-1, -2)  # (..., N, C)
        factors = _between(channels[..., :, None], channels[..., None, :])
        return torch.einsum("...in,...jn,...nij->...ij", a, b, factors)
    halves = (-2, (2, count // 2))
    a, b, total = a.unflatten(*halves), b.unflatten(*halves), total.unflatten(*halves)
    border = total[..., 0, -1:, :]
    reads = a[..., 1, :, :] * (total[..., 1, :, :] - border).exp()
    across = reads @ (b[..., 0, :, :] * (border - total[..., 0, :, :]).exp()).transpose(-1, -2)
    within = _products_by_channel(a, b, total)  # (..., 2, C / 2, C / 2)
    upper = torch.cat([within[..., 0, :, :], torch.zeros_like(across)], dim=-1)
    return torch.cat([upper, torch.cat([across, within[..., 1, :, :]], dim=-1)], dim=-2)


def chunked(x: Tensor, chunk: int) -> Tensor:
    """(B, H, T, N) -> (B, H, chunks, chunk, N), the last chunk filled with zeros."""
    out: Tensor = F.pad(x, (0, 0, 0, -x.shape[2] % chunk)).unflatten(2, (-1, chunk))
    return out


def decayed_products(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor | None, chunk: int, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = a_t S_{t-1} + k_t v_t^T and o_t = S_t^T q_t, in chunks whose memories come from one matrix product.

    q, k: (B, H, T, N); v: (B, H, T, M); log_decay: (B or 1, H, T, 1) logarithm of a_t
    memory: (B, H, N, M) before the first token; None: zeros
    chunk: number of tokens per chunk
    starts: (B, T) index of the first token of each token's document; None: each row is one document

    Returns o (B, H, T, M), and the memory after the last token.
    """
    count = q.shape[2]
    chunk = min(chunk, count)
    decays = ChunkDecays.of(log_decay, chunk, starts)
    q, k, v = (chunked(x, chunk) for x in (q, k, v))
    written = (k * decays.until).transpose(-1, -2) @ v  # (B, H, chunks, N, M): the sum that each chunk adds
    total = decays.logs.cumsum(2)[..., 0]  # (B or 1, H, chunks)
    between = _between(total[..., :, None], total[..., None, :])
    first = total.exp()
    if starts is not None:  # a memory carries over chunks, or from the initial memory, within one document only
        open_after = F.pad(starts, (0, -count % chunk), mode="replicate")[:, None, chunk - 1 :: chunk]
        between = between * (open_after[..., :, None] == open_after[..., None, :])
        first = first * (open_after == -1)
    after = (between @ written.flatten(3)).view_as(written)
    if memory is not None:
        after = after + first[..., None, None] * memory[:, :, None].to(after.dtype)
    begin = torch.zeros_like(after[:, :, :1]) if memory is None else memory[:, :, None].to(after.dtype)
    before = torch.cat([begin, after[:, :, :-1]], dim=2)
    return (decays.products(q, k) @ v + (q * decays.since) @ before).flatten(2, 3)[:, :, :count], after[:, :, -1]
