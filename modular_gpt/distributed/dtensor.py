"""Tensors of which each process holds a part (DTensor): whole ones from parts, and parts of whole ones.

Plain tensors pass through unchanged, so that the same code serves one process.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T", bound=Tensor)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, not a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, in all processes, which must all ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, which all processes have -> one that is divided among them as ``model`` of the same shape is."""
    if not isinstance(model, DTensor):
        return tensor
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def division_of(tensor: Tensor) -> DeviceMesh | None:
    """Among which processes a tensor is divided; operations on several tensors at once take those of one division."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors together, a plain scalar."""
    norms = [full_tensor(torch.nn.utils.get_total_norm(each)) for each in by_division(tensors)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def clip(parameters: list[nn.Parameter], longest: float, norm: Tensor) -> None:
    """Scale gradients, whose norm is ``norm``, down to ``longest``."""
    for each in by_division(parameters):
        torch.nn.utils.clip_grads_with_norm_(each, longest, norm)


def by_division(tensors: Sequence[T]) -> list[list[T]]:
    """Lists of tensors that are divided alike."""
    found: dict[DeviceMesh | None, list[T]] = {}
    for tensor in tensors:
        found.setdefault(division_of(tensor), []).append(tensor)
    return list(found.values())
