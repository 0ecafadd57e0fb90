"""Tensors of which each process holds a part (DTensor): whole ones from parts, and parts of whole ones.

Plain tensors pass through unchanged, so that the same code serves one process.
"""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_of(tensor: Tensor) -> Tensor:
    """The whole tensor, in all processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, which all processes have -> one that is divided among them as ``model`` of the same shape is."""
    if not isinstance(model, DTensor):
        return tensor
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors together, a plain scalar."""
    kinds: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    norms = [whole_of(torch.nn.utils.get_total_norm(each)) for each in kinds.values()]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()
