"""Deferred allocation: a model is built on the meta device, sharded, and then filled one tensor at a time.

No process ever holds all full tensors. A new model gets the same values as in one process: every process draws each
full tensor, keeps its shard, and frees the rest before it draws the next one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from modular_gpt.distributed.dtensor import distribute_like
from modular_gpt.model import GPTModel
from modular_gpt.model.init import initialise
from modular_gpt.nn.matrices import is_matrix


def is_deferred(model: nn.Module) -> bool:
    """Whether parameters of the model are on the meta device, without storage."""
    return any(parameter.is_meta for parameter in model.parameters())


def allocate_shards(model: GPTModel, device: torch.device) -> None:
    """Allocate this process's shards of a model on the meta device. Parameters are not initialised.

    Buffers get the values that the ``reset_parameters`` of their module sets, or zeros.
    """
    model.to_empty(device=device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for module in model.modules():
            buffers = list(module.buffers(recurse=False))
            for buffer in buffers:
                buffer.zero_()
            reset = getattr(module, "reset_parameters", None)
            if buffers and callable(reset):
                names = [name for name, _ in module.named_parameters(recurse=False) if not is_matrix(module, name)]
                with full_parameters(module, names):
                    reset()


def initialise_shards(model: GPTModel) -> None:
    """Initialise the weights of a new model after ``allocate_shards``, without communication."""
    initialise(model, model.config, full_parameters)


@contextmanager
def full_parameters(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Context manager: inside, the parameters ``names`` of a module are full tensors on the CPU, filled with zeros.

    At the end, each parameter is its shard again and takes its values from the full tensor.
    """
    shards = {name: module.get_parameter(name) for name in names}
    for name, shard in shards.items():
        setattr(module, name, nn.Parameter(torch.zeros(shard.shape, dtype=shard.dtype), shard.requires_grad))
    yield
    for name, shard in shards.items():
        full = module.get_parameter(name).detach()
        setattr(module, name, shard)
        with torch.no_grad():
            shard.copy_(distribute_like(full, shard))
