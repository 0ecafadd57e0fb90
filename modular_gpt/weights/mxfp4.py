"""Experts in MXFP4, the format of GPT-OSS: blocks of 32 numbers of 4 bits with one power of 2.

https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from modular_gpt.core.errors import CheckpointError, printable
from modular_gpt.weights.tensor_files import LazyTensor

# by the four bits: sign, two bits of the exponent, one of the mantissa
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = (*_MAGNITUDES, *(-value for value in _MAGNITUDES))
BLOCKS, SCALES = "_blocks", "_scales"
BIAS = 127  # of the stored exponents


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """Matrices (experts, in, out) in bfloat16, which holds them exactly.

    One expert at a time, so that besides the result only numbers of one expert are held.

    blocks: (experts, out, in / 32, 16) bytes, each with two numbers, the low four bits first
    scales: (experts, out, in / 32) bytes, the exponents of the blocks plus 127
    """
    values = torch.tensor(VALUES, dtype=torch.bfloat16, device=blocks.device)
    experts, rows, count, _ = blocks.shape
    out = torch.empty(experts, rows, count, 32, dtype=torch.bfloat16, device=blocks.device)
    for one, packed, exponents in zip(out, blocks, scales, strict=True):
        for place, numbers in enumerate((packed & 15, packed >> 4)):
            one[..., place::2] = values[numbers.int()]
        torch.ldexp(one, exponents.int()[..., None] - BIAS, out=one)
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
        return dequantised(self.blocks.load(), self.scales.load())


def dequantising(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """A view with one tensor in place of each pair of blocks and scales.

    Raises:
        CheckpointError: blocks have no scales, or their shapes do not fit.
    """
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(BLOCKS)]:
        stem = name.removesuffix(BLOCKS)
        blocks, scales = found.pop(name), found.pop(stem + SCALES, None)
        if scales is None or (*scales.shape, 16) != tuple(blocks.shape) or len(blocks.shape) != 4:
            raise CheckpointError(
                f"tensor {printable(name)!r} needs one exponent for every 16 bytes in {printable(stem + SCALES)!r};"
                " copy or download the files again"
            )
        found[stem] = QuantisedTensor(blocks, scales)
    return found
