"""Sharded tensors (DTensor): gather them, shard whole ones, and take norms of both.

Plain tensors pass through unchanged, so that the same code serves one process.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

T = TypeVar("T", bound=Tensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """The shard of a tensor that this process holds; a view, no copy."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole tensor, in all processes. Collective: all must call it."""
    if not isinstance(tensor, DTensor):
        return tensor
    placements = list(tensor.placements)
    for dim in range(len(placements) - 1):  # the last division is undone first, one at a time
        placements[dim] = Replicate()
        tensor = tensor.redistribute(placements=placements)
    return tensor.full_tensor()


def distribute_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Shard a whole tensor, which every process holds, as ``model`` of the same shape is sharded."""
    if not isinstance(model, DTensor):
        return tensor
    tensor = tensor.to(model.device)
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The processes that a tensor is sharded among, or None. Fused operations need tensors of one mesh."""
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def total_norm(tensors: list[Tensor]) -> Tensor:
    """The norm of all tensors together, as a plain scalar."""
    norms = [full_tensor(torch.nn.utils.get_total_norm(group)) for group in by_mesh(tensors)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def clip_gradients(parameters: list[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale the gradients of parameters, whose total norm is ``norm``, down to ``max_norm``."""
    for group in by_mesh(parameters):
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)


def by_mesh(tensors: Sequence[T]) -> list[list[T]]:
    """Tensors in lists of one mesh."""
    groups: dict[DeviceMesh | None, list[T]] = {}
    for tensor in tensors:
        groups.setdefault(mesh_of(tensor), []).append(tensor)
    return list(groups.values())
