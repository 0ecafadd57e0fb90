"""Transforms of tensors: ``join`` and ``split`` are inverse to each other."""

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
def test_split_inverts_join(name: str) -> None:
    transform, shapes, joined_shape = TRANSFORMS[name]
    tensors = [torch.randn(shape) for shape in shapes]
    joined = transform.join(tensors, HEADS)
    assert joined.shape == joined_shape
    restored = transform.split(joined, [tensor.shape for tensor in tensors], HEADS)
    assert all(torch.equal(a, b) for a, b in zip(tensors, restored, strict=True))


def test_fused_per_head_interleaves_the_heads() -> None:
    query, key = torch.tensor([0.0, 1, 2, 3]), torch.tensor([10.0, 11, 12, 13])
    assert FUSED_PER_HEAD.join([query, key], 2).tolist() == [0, 1, 10, 11, 2, 3, 12, 13]
