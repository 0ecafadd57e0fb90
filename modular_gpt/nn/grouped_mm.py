"""Grouped matrix product: rows sorted by group, each group multiplied by its own matrix, in one operator.

Group sizes are data, so plain indexing would break a compiled graph; a custom operator does not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each row by the matrix of its group: x[i] @ weight[g] for row i of group g. Returns (M, C).

    x: (M, A), rows sorted by group; weight: (G, A, C); ends: (G,) int32, index after the last row of each group
    """
    if x.is_cuda and x.dtype == torch.bfloat16 and x.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0:
        return F.grouped_mm(x, weight.contiguous(), offs=ends)  # one kernel, no synchronisation
    out: Tensor = _grouped(x, weight.to(x.dtype), ends)
    return out


@torch.library.custom_op("modular_gpt::grouped_matmul", mutates_args=())
def _grouped(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[2])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(x[start:end], weight[group], out=out[start:end])
        start = end
    return out


@_grouped.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[2])


@torch.library.custom_op("modular_gpt::grouped_outer", mutates_args=())
def _grouped_outer(x: Tensor, y: Tensor, ends: Tensor) -> Tensor:
    """x: (M, A), y: (M, C) -> (G, A, C): the sum of the outer products of x[i] and y[i] over the rows of each group."""
    out = x.new_empty(ends.shape[0], x.shape[1], y.shape[1])
    start = 0
    for group, end in enumerate(ends.tolist()):
        torch.mm(x[start:end].t(), y[start:end], out=out[group])
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
