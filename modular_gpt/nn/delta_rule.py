"""The gated delta rule: a memory that decays, and in which each token replaces the value stored under its key.

    S_t = a_t S_{t-1} + r_t k_t (v_t - (a_t S_{t-1})^T k_t)^T        o_t = S_t^T q_t

Chunks of tokens are computed by matrix products (https://arxiv.org/abs/2406.06484, https://arxiv.org/abs/2412.06464).
The values that the tokens of a chunk replace of each other are the solution of a triangular system.
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
    chunk: number of tokens computed at once; starts: (B, T) first token of each token's document; None: one text a row
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
    # what earlier tokens of the chunk have stored under a key: (1 + tril(rate k k^T)) written = rate (v - k memory)
    among = (rate * decays.products(k, k)).tril(-1)
    sides = torch.cat([rate * v, rate * k * decays.since], dim=-1)
    solved = torch.linalg.solve_triangular(among, sides, upper=False, unitriangular=True)
    fresh, stored = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    within, reads, kept = decays.products(q, k), q * decays.since, (k * decays.until).transpose(-1, -2)
    out = []
    for index in range(q.shape[2]):
        written = fresh[:, :, index] - stored[:, :, index] @ memory
        out.append(reads[:, :, index] @ memory + within[:, :, index] @ written)
        memory = memory * decays.whole[:, :, index, :, None] + kept[:, :, index] @ written
    return torch.cat(out, dim=2)[:, :, :count], memory


def _one_token(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, rate: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence itself: (B, H, 1, N), (B, H, 1, N), (B, H, 1, M) -> (B, H, 1, M), memory."""
    memory = memory * decay.transpose(-1, -2)
    memory = memory + k.transpose(-1, -2) @ (rate * (v - k @ memory))
    return q @ memory, memory
