"""Peak number of allocated elements, and the start of sharded models."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.checkpoint import CheckpointReader, save_checkpoint
from modular_gpt.core.registry import decode
from modular_gpt.distributed import build_parallel
from modular_gpt.distributed.dtensor import full_tensor, local_tensor
from modular_gpt.runtime.processes import ProcessGroup
from modular_gpt.training import RunConfig
from modular_gpt.training.build import checkpoint_model, new_model, place_model
from modular_gpt.training.forward import Placement

SIZE = {"d_model": 16, "n_heads": 4, "n_layers": 3, "context_length": 16, "vocab_size": 65}
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"tie_embeddings": False, "pos": "learned", "head_bias": True},
    "experts": {"ffn": {"name": "moe", "n_experts": 4, "balance": "bias"}, "attention": "mla"},
    "recurrent": {"attention": "gated_delta", "init": "orthogonal", "init_residual": "zero"},
    "by name": {"init_by_name": True, "attention": "lightning", "init_head": "zero", "tie_embeddings": False},
}


class Allocated(TorchDispatchMode):
    """Counts the elements of live floating-point storages, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            tensor = local_tensor(tensor) if isinstance(tensor, Tensor) else None
            if tensor is not None and not tensor.is_meta and tensor.is_floating_point():
                self.note(tensor)
        return out

    def note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, count = id(storage), storage.nbytes() // tensor.element_size()
        if self.live.get(key) is None:
            self.live[key] = count
            weakref.finalize(storage, self.live.pop, key, None)
        self.peak = max(self.peak, sum(self.live.values()))


def start(name: str, way: dict[str, Any], saved: str | None) -> tuple[list[str], int, int, int]:
    """Start a sharded model: a new one, or that of a checkpoint.

    Returns the names of tensors that differ from those of one process, and numbers of elements: the peak, those of
    the shards of this process, and those of the largest tensor.
    """
    config = GPTConfig(**{**SIZE, **MODELS[name]})
    parallel = build_parallel(decode("parallel", way), ProcessGroup.launched())
    placement = Placement(torch.device("cpu"), "float32", parallel)
    run = RunConfig(model=config)
    allocated = Allocated()
    with allocated:
        if saved is None:
            model = place_model(new_model(config, 3, parallel), placement, None)
        else:
            reader = CheckpointReader(Path(saved))
            model = place_model(checkpoint_model(reader, run, config, parallel), placement, reader)
    drawn_next = torch.rand(3)
    torch.manual_seed(3)
    whole = GPTModel(config)
    different = [] if saved or torch.equal(torch.rand(3), drawn_next) else ["the next random numbers"]
    values = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for key, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        if not torch.equal(full_tensor(tensor.detach()), values[key]):
            different.append(key)
    held = sum(local_tensor(tensor.detach()).numel() for tensor in model.parameters())
    return different, allocated.peak, held, max(tensor.numel() for tensor in values.values())


def starts(ways: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    """``start`` of all models with all strategies, new and from a checkpoint in a folder."""
    found = {}
    for name in MODELS:
        directory = f"{folder}/{name}"
        if torch.distributed.get_rank() == 0:
            torch.manual_seed(3)
            save_checkpoint(directory, GPTModel(GPTConfig(**{**SIZE, **MODELS[name]})))
        torch.distributed.barrier()
        for way in ways:
            found[f"{name}, {way['name']}, new"] = start(name, way, None)
            found[f"{name}, {way['name']}, resumed"] = start(name, way, directory)
    return found
