"""Grouped matrix products with row counts that are rounded up, compared with one product per group."""

import pytest
import torch
from torch import Tensor

from modular_gpt.nn.grouped_mm import ROUNDED, gather_rows, grouped_matmul

COUNTS = {
    "small": [3, 0, 1, ROUNDED],
    "rounded, with room behind": [ROUNDED + 1, 0, 4 * ROUNDED, 100],
    "rounded, at the end": [5, 0, 2 * ROUNDED + 1],
    "large": [1100, 1, 0, 1001],
    "empty at the end": [40, 70, 0, 0],
}


def one_by_one(x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    return torch.cat([rows @ matrix for rows, matrix in zip(x.split(counts), weight, strict=True)])


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients(dtype: torch.dtype, counts: list[int]) -> None:
    x = torch.randn(sum(counts), 24).to(dtype).requires_grad_()
    weight = torch.randn(len(counts), 24, 40).to(dtype).requires_grad_()
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    got, expected = grouped_matmul(x, weight, ends), one_by_one(x, weight, counts)
    grad = torch.randn_like(expected)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for one, other in zip(
        (got, *torch.autograd.grad(got, (x, weight), grad)),
        (expected, *torch.autograd.grad(expected, (x, weight), grad)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * other.float().std().item())


def test_infinity_does_not_leak_into_other_groups() -> None:
    """Rounding up the number of rows also multiplies rows of the next group."""
    counts = [ROUNDED + 1, 2 * ROUNDED]
    x = torch.randn(sum(counts), 8).bfloat16()
    x[counts[0]] = torch.inf
    x.requires_grad_()
    weight = torch.randn(2, 8, 8).bfloat16().requires_grad_()
    out = grouped_matmul(x, weight, torch.tensor(counts).cumsum(0).to(torch.int32))
    assert out[: counts[0]].isfinite().all() and not out[counts[0]].isfinite().any()
    (gradient,) = torch.autograd.grad(out, weight, torch.ones_like(out))
    assert gradient[0].isfinite().all() and not gradient[1].isfinite().any()


@pytest.mark.parametrize("copies", [1, 3])
def test_rows_gathered_by_a_permutation(copies: int) -> None:
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(7 * copies)
    got, expected = gather_rows(x, order, order.argsort(), copies), x[order // copies]
    assert torch.equal(got, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(got, x, grad), torch.autograd.grad(expected, x, grad))
