"""Operations on sharded tensors (DTensor): gather, shard, and norms.

Plain tensors are returned unchanged, so that training in one process uses the same code.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

T = TypeVar("T", bound=Tensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds, without a copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor in all processes. Collective: all must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for dim in range(len(placements) - 1):  # one mesh dimension at a time, the one that was sharded last first
        placements[dim] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.full_tensor()


def distribute_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Shard a full tensor as ``reference``, of the same shape, is sharded.

    Every process must hold the same ``tensor``. No communication takes place.
    """
    if not isinstance(reference, DTensor):
        return tensor
    tensor = tensor.to(reference.device)
    return distribute_tensor(tensor, reference.device_mesh, reference.placements, src_data_rank=None)


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The device mesh of a sharded tensor; None for a plain one. Fused operations need tensors of one mesh."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of all tensors together, as a plain scalar tensor. Collective if some are sharded."""
    norms = [full_tensor(torch.nn.utils.get_total_norm(group)) for group in by_mesh(tensors)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def clip_gradients(parameters: list[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Clip the gradients of parameters to the total norm ``max_norm``; norm: their total norm."""
    for group in by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def by_mesh(tensors: Sequence[T]) -> list[list[T]]:
    """Group tensors by device mesh."""
    groups: dict[DeviceMesh | None, list[T]] = {}
    for tensor in tensors:
        groups.setdefault(mesh_of(tensor), []).append(tensor)
    return list(groups.values())
