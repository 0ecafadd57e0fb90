"""Grouped matrix product: rows sorted by group, each group multiplied by another matrix, in one operator.

The sizes of groups are data. Indexing by them would break a compiled graph, and a custom operator does not.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDED = 32  # the smallest multiple to which numbers of rows in bfloat16 are rounded up


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each row by the matrix of its group: x[i] @ weight[g] for row i of group g. Returns (M, C).

    x: (M, A), rows sorted by group; weight: (G, A, C); ends: (G,) int32, index after the last row of each group
    """
    if x.is_cuda and x.dtype == torch.bfloat16 and x.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0:
        return F.grouped_mm(x, weight.contiguous(), offs=ends)  # one kernel, no synchronisation
    out: Tensor = _grouped(x, weight.to(x.dtype), ends)
    return out


def spans(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    """The groups that have rows, as (group, index of the first row, index after the last row).

    ends: (G,) index after the last row of each group
    """
    start = 0
    for group, end in enumerate(ends.tolist()):
        if start < end:
            yield group, start, end
        start = end


def _rows(x: Tensor, count: int) -> int:
    """The number of rows to multiply for a group of ``count``.

    oneDNN compiles a kernel for each new shape of a bfloat16 product, which takes about a millisecond on a CPU. Group
    sizes differ in every step, so they are rounded up, by a sixteenth at most beyond ``ROUNDED``, to make shapes recur.
    """
    if x.is_cuda or x.dtype != torch.bfloat16 or count <= ROUNDED:
        return count
    step = max(ROUNDED, 1 << (count.bit_length() - 5))
    return -(-count // step) * step


def gather_rows(x: Tensor, order: Tensor, inverse: Tensor, copies: int = 1) -> Tensor:
    """x[order // copies]: (M, D) -> (M * copies, D), each row ``copies`` times.

    order: (M * copies,) a permutation
    inverse: its inverse, by which the gradient is gathered; this is faster than scattering with addition
    """
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _GatherRows.apply(x, order, inverse, copies)
        return out
    return x[order // copies]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = k  # type: ignore[attr-defined]
        return x[order // k]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad[inverse].unflatten(0, (-1, ctx.copies)).sum(1), None, None, None  # type: ignore[attr-defined]


def _padded(x: Tensor, rows: int) -> Tensor:
    """x (n, A) with zeros up to ``rows`` rows."""
    return x if len(x) == rows else F.pad(x, (0, 0, 0, rows - len(x)))


@torch.library.custom_op("modular_gpt::grouped_matmul", mutates_args=())
def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[2])
    for group, start, end in spans(ends):
        last = start + _rows(x, end - start)
        if last > len(x):
            out[start:end] = torch.mm(_padded(x[start:end], last - start), weight[group])[: end - start]
        else:  # rows beyond the group are overwritten by later groups
            torch.mm(x[start:last], weight[group], out=out[start:last])
    return out


@_grouped.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("modular_gpt::grouped_outer", mutates_args=())
def _grouped_outer(x: Tensor, y: Tensor, ends: Tensor) -> Tensor:
    """x (M, A), y (M, C) -> (G, A, C): the sum of the outer products of x[i] and y[i] over the rows of each group."""
    out = x.new_empty(ends.shape[0], x.shape[1], y.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        rows = _rows(x, end - start)
        torch.mm(_padded(x[start:end], rows).t(), _padded(y[start:end], rows), out=out[group])
        start = end
    return out


@_grouped_outer.register_fake
def _(x: Tensor, y: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], x.shape[1], y.shape[1])


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, ends = ctx.saved_tensors  # type: ignore[attr-defined]
    grad = grad.contiguous()
    return _grouped(grad, weight.transpose(1, 2), ends), _grouped_outer(x, grad, ends), None


_grouped.register_autograd(_backward, setup_context=_save)
