"""Dequantisation of MXFP4, the format of GPT-OSS's experts: blocks of 32 numbers of 4 bits that share a power of 2.

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.weights.tensor_files import LazyTensor

# indexed by the four bits: sign, two bits of the exponent, one bit of the mantissa
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
BLOCKS, SCALES = "_blocks", "_scales"
BIAS = 127  # of the stored exponents


def dequantise(blocks: Tensor, scales: Tensor) -> Tensor:
    """Dequantise matrices to (experts, in, out) in bfloat16, which represents the values exactly.

    Experts are converted one at a time, so that temporary tensors have the size of one expert.

    blocks: (experts, out, in / 32, 16) bytes of two numbers each, the low four bits first
    scales: (experts, out, in / 32) bytes, the exponents of the blocks plus 127
    """
    values = torch.tensor(VALUES, dtype=torch.bfloat16, device=blocks.device)
    experts, rows, count, _ = blocks.shape
    out = torch.empty(experts, rows, count, 32, dtype=torch.bfloat16, device=blocks.device)
    for expert, packed, exponents in zip(out, blocks, scales, strict=True):
        for offset, indices in enumerate((packed & 15, packed >> 4)):
            expert[..., offset::2] = values[indices.int()]
        torch.ldexp(expert, exponents.int()[..., None] - BIAS, out=expert)
    return out.flatten(2).mT


@dataclass(frozen=True)
class QuantisedTensor:
    """A tensor that is dequantised when it is loaded."""

    blocks: LazyTensor
    scales: LazyTensor

    @property
    def shape(self) -> torch.Size:
        experts, rows, count, width = self.blocks.shape
        return torch.Size((experts, 2 * count * width, rows))

    def load(self) -> Tensor:
        return dequantise(self.blocks.load(), self.scales.load())


def dequantising(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """A view in which each pair of blocks and scales is replaced by the dequantised tensor.

    Raises:
        CheckpointError: blocks have no scales, or scales of another shape.
    """
    view = dict(tensors)
    for name in [name for name in tensors if name.endswith(BLOCKS)]:
        stem = name.removesuffix(BLOCKS)
        blocks, scales = view.pop(name), view.pop(stem + SCALES, None)
        if scales is None or (*scales.shape, 16) != tuple(blocks.shape) or len(blocks.shape) != 4:
            raise CheckpointError(
                f"tensor {printable(name)!r} needs one exponent for every 16 bytes in {printable(stem + SCALES)!r};"
                " copy or download the files again"
            )
        view[stem] = QuantisedTensor(blocks, scales)
    return view
