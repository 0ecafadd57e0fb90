"""Transforms of tensors are inverse to each other."""

import pytest
import torch

from modular_gpt.mapping.tensor_map import COPY, FUSED, FUSED_PER_HEAD, INTERLEAVED, Transform, transposed

HEADS = 4
TRANSFORMS: dict[str, tuple[Transform, list[tuple[int, ...]], tuple[int, ...]]] = {
    "copy": (COPY, [(8, 3)], (8, 3)),
    "transposed": (transposed(COPY), [(8, 3)], (3, 8)),
    "transposed experts": (transposed(COPY), [(5, 8, 3)], (5, 3, 8)),
    "fused": (FUSED, [(8, 3), (4, 3), (4, 3)], (16, 3)),
    "fused bias": (FUSED, [(8,), (4,), (4,)], (16,)),
    "fused, transposed": (transposed(FUSED), [(8, 3), (4, 3), (4, 3)], (3, 16)),
    "fused per head": (FUSED_PER_HEAD, [(8, 3), (12, 3)], (20, 3)),
    "fused per head, bias": (FUSED_PER_HEAD, [(8,), (8,), (8,)], (24,)),
    "interleaved": (INTERLEAVED, [(5, 6, 3), (5, 6, 3)], (5, 12, 3)),
    "interleaved, transposed": (transposed(INTERLEAVED), [(5, 6, 3), (5, 6, 3)], (5, 3, 12)),
    "interleaved bias": (INTERLEAVED, [(5, 6), (5, 6)], (5, 12)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_there_and_back(name: str) -> None:
    transform, shapes, theirs = TRANSFORMS[name]
    ours = [torch.randn(shape) for shape in shapes]
    joined = transform.join(ours, HEADS)
    assert joined.shape == theirs
    back = transform.split(joined, [each.shape for each in ours], HEADS)
    assert all(torch.equal(a, b) for a, b in zip(ours, back, strict=True))


def test_fused_per_head_by_hand() -> None:
    query, key = torch.tensor([0.0, 1, 2, 3]), torch.tensor([10.0, 11, 12, 13])
    assert FUSED_PER_HEAD.join([query, key], 2).tolist() == [0, 1, 10, 11, 2, 3, 12, 13]
