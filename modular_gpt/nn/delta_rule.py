"""The gated delta rule: a memory that decays, and in which each token replaces the value stored under its key.

    S_t = a_t S_{t-1} + r_t k_t (v_t - (a_t S_{t-1})^T k_t)^T        o_t = S_t^T q_t

Chunks of tokens are computed by matrix products (https://arxiv.org/abs/2406.06484, https://arxiv.org/abs/2412.06464).
Since tokens of a chunk replace values of each other, the values that they write solve a triangular system.
"""

import torch
from torch import Tensor

from modular_gpt.nn.decay import ChunkDecays, chunked


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: tuple[Tensor, Tensor],
    memory: Tensor | None,
    chunk: int,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The gated delta rule over T tokens.

    q, k: (B, H, T, N); v: (B, H, T, M)
    gates: log_decay (B, H, T, N or 1), the logarithm of a_t; rate (B, H, T, 1), r_t
    memory: (B, H, N, M) before the first token; None: zeros
    chunk: number of tokens computed at once; starts: (B, T) index of the first token of each token's document, or None
    Returns o (B, H, T, M), and the memory after the last token.
    """
    log_decay, rate = gates
    if memory is None:
        memory = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    memory = memory.to(q.dtype)
    if q.shape[2] == 1:
        return _one_token(q, k, v, log_decay.exp(), rate, memory)
    count = q.shape[2]
    # a loop over chunks would fix the number of tokens of an exported program
    chunk = count if torch.compiler.is_exporting() else min(chunk, count)
    decays = ChunkDecays.of(log_decay, chunk, starts)
    q, k, v, rate = (chunked(x, chunk) for x in (q, k, v, rate))
    # the values written by a chunk solve (1 + tril(rate k k^T)) written = rate (v - k memory)
    overlaps = (rate * decays.products(k, k)).tril(-1)
    right_sides = torch.cat([rate * v, rate * k * decays.since], dim=-1)
    solved = torch.linalg.solve_triangular(overlaps, right_sides, upper=False, unitriangular=True)
    fresh, stored = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    within, reads, kept = decays.products(q, k), q * decays.since, (k * decays.until).transpose(-1, -2)
    out = []
    for index in range(q.shape[2]):
        written = fresh[:, :, index] - stored[:, :, index] @ memory
        out.append(reads[:, :, index] @ memory + within[:, :, index] @ written)
        memory = memory * decays.whole[:, :, index, :, None] + kept[:, :, index] @ written
    return torch.cat(out, dim=2)[:, :, :count], memory


def _one_token(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """One step of the recurrence: q, k (B, H, 1, N), v (B, H, 1, M) -> o (B, H, 1, M), and the memory after it."""
    memory = memory * decay.transpose(-1, -2)
    memory = memory + k.transpose(-1, -2) @ (rate * (v - k @ memory))
    return q @ memory, memory
