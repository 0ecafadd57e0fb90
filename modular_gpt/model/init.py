"""Weight initialisation as one pass over a model's modules.

Matrices (``nn/matrices.py``) and embeddings are drawn here. Other parameters, such as norm weights and sinks, are set
by their module's ``reset_parameters``. The default is GPT-2's: normal with 0.02, biases zero, and matrices that write
into the residual stream scaled by 1/sqrt(2 n_layers). Zeros there, and in the head, let a model begin with all tokens
equally likely.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from modular_gpt.model.config import GPTConfig
from modular_gpt.nn.matrices import is_matrix
from modular_gpt.nn.residual import is_residual

FullParameters = Callable[[nn.Module, Sequence[str]], AbstractContextManager[None]]


def not_sharded(module: nn.Module, names: Sequence[str]) -> AbstractContextManager[None]:
    """Do nothing: the ``FullParameters`` of a model that is not sharded."""
    return nullcontext()


@torch.no_grad()
def initialise(model: nn.Module, config: GPTConfig, full_parameters: FullParameters = not_sharded) -> None:
    """Set every parameter and buffer of ``model``, drawing from PyTorch's global generator.

    With ``init_by_name``, the generator is seeded before each draw by its initial seed and the parameter's name. A
    model on the meta device has no values to set.

    full_parameters: context manager in which the given parameters of a sharded module are full tensors
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    seed = torch.initial_seed()
    for path, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        reset = getattr(module, "reset_parameters", None)
        if callable(reset) and not isinstance(module, (nn.Linear, nn.Embedding)):
            if config.init_by_name:
                torch.manual_seed(seed_of(seed, path))
            with full_parameters(module, [name for name in names if not is_matrix(module, name)]):
                reset()
        for name in names:
            if config.init_by_name:
                torch.manual_seed(seed_of(seed, f"{path}.{name}"))
            if name.endswith("bias"):
                module.get_parameter(name).zero_()
            elif isinstance(module, nn.Embedding) or is_matrix(module, name):
                with full_parameters(module, [name]):
                    _draw(module.get_parameter(name), config, isinstance(module, nn.Embedding))
                    if is_residual(module, name):
                        module.get_parameter(name).mul_(_residual_factor(config))
    head = getattr(model, "head", None)
    if config.init_head == "zero" and isinstance(head, nn.Linear):
        head.weight.zero_()
    if config.init_by_name:
        torch.manual_seed(seed)  # draws after the model do not depend on its last parameter's name


def seed_of(seed: int, name: str) -> int:
    """The seed (63 bits) of the generator for ``name`` in a run with ``seed``."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1


def _draw(weight: Tensor, config: GPTConfig, embedding: bool) -> None:
    """Draw a matrix, or stacked ones of experts, (..., out, in), or an embedding table."""
    if config.init == "normal" or embedding:  # a row of an embedding has no fan-in
        nn.init.normal_(weight, std=config.init_std)
    elif config.init == "fan_in":
        nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    elif config.init == "xavier":
        nn.init.normal_(weight, std=math.sqrt(2 / (weight.shape[-1] + weight.shape[-2])))
    else:
        for matrix in weight.view(-1, *weight.shape[-2:]):
            nn.init.orthogonal_(matrix)


def _residual_factor(config: GPTConfig) -> float:
    return {"scaled": 1 / math.sqrt(2 * config.n_layers), "plain": 1.0, "zero": 0.0}[config.init_residual]
