"""Models that no process ever holds as a whole: built without storage, sharded, and filled one tensor at a time.

A new model gets the values that one process would have drawn: every process draws each tensor as a whole, keeps its
shard, and frees the rest before it draws the next one.
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
    """Whether a model has no storage yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def allocate_shards(model: GPTModel, device: torch.device) -> None:
    """Give a sharded model on the meta device storage for the shards of this process; parameters get no values.

    Buffers get the values that ``reset_parameters`` of their modules sets.
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
                with whole_parameters(module, names):
                    reset()


def initialise_shards(model: GPTModel) -> None:
    """Draw the weights of a new model that ``allocate_shards`` has given storage; no communication takes place."""
    initialise(model, model.config, whole_parameters)


@contextmanager
def whole_parameters(module: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Context manager: the parameters ``names`` of a module are whole, on the CPU; then each keeps its shard of them.

    Their values are lost at the beginning.
    """
    shards = {name: module.get_parameter(name) for name in names}
    for name, shard in shards.items():
        setattr(module, name, nn.Parameter(torch.zeros(shard.shape, dtype=shard.dtype), shard.requires_grad))
    yield
    for name, shard in shards.items():
        whole = module.get_parameter(name).detach()
        setattr(module, name, shard)
        with torch.no_grad():
            shard.copy_(distribute_like(whole, shard))
