"""Tensor parallelism: https://arxiv.org/abs/1909.08053"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel import ParallelStyle as TorchStyle

from modular_gpt.core.collectives import ShardGroup, divide_rows_among
from modular_gpt.core.contracts import COLUMNS, ROWS, SHARED, STACK, ParallelStyle
from modular_gpt.core.errors import ConfigError
from modular_gpt.distributed.deferred import allocate_shards, is_deferred
from modular_gpt.distributed.dtensor import local_tensor
from modular_gpt.distributed.strategy import Parallel, ParallelConfig
from modular_gpt.model import GPTModel
from modular_gpt.model.materialize import model_from_tensors

STYLES: dict[str, type[TorchStyle]] = {COLUMNS: ColwiseParallel, ROWS: RowwiseParallel}


class TensorParallel(Parallel, name="tensor"):
    """Each process computes its shard of the heads, hidden units, experts and logits of every token (DTensor)."""

    shards_weights = True

    @dataclass
    class Config(ParallelConfig):
        """Settings of tensor parallelism.

        sharded_checkpoints: Write the shards of each process into a checkpoint, instead of gathering all weights in
            the first process.
        """

        sharded_checkpoints: bool = False

    config: Config

    @property
    def sharded_checkpoints(self) -> bool:
        return self.config.sharded_checkpoints

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        check_precision(precision)
        if not is_deferred(model):
            model.to(device)
        divide_rows_among(None)
        self.mesh = init_device_mesh(device.type, (self.processes.world,), mesh_dim_names=("tensor",))
        self.shared = shard_tensors(model, self.mesh)
        if is_deferred(model):
            allocate_shards(model, device)
        return model

    def finish_gradients(self) -> None:
        sum_gradients(self.shared, self.mesh)

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        return gather_on_main(self, model)


def check_precision(precision: str) -> None:
    """Raise a ConfigError if tensor parallelism does not support the precision."""
    if precision == "fp16":
        raise ConfigError(
            "tensor parallelism has no loss scaler for fp16: use trainer.precision=bf16 or trainer.precision=float32"
        )


def gather_on_main(parallel: Parallel, model: GPTModel) -> GPTModel | None:
    """An unsharded copy of a model in the first process, for caches with the keys of all heads; None in the others."""
    weights = parallel.gather(model.state_dict())
    if not parallel.processes.is_main:
        return None
    return model_from_tensors(model.config, weights, device=next(model.parameters()).device)


def shard_tensors(model: GPTModel, mesh: DeviceMesh) -> list[tuple[nn.Module, str]]:
    """Shard a model over a mesh of one dimension: embeddings and head by token id, blocks by their ``shard``.

    Returns the module and name of each parameter whose gradients must be summed by ``sum_gradients``.

    Raises:
        ConfigError: a size does not divide by the number of processes.
    """
    shards = ShardGroup(mesh.get_group())
    shared = []
    for block in model.blocks:
        plan = {
            f"{name}.{layer}": style
            for name, module in (("attention", block.attention), ("ffn", block.ffn))
            for layer, style in module.join(shards).items()
        }
        shared += _apply(block, plan, mesh)
    return shared + _apply(model, model.shard_vocabulary(shards), mesh)


def _apply(module: nn.Module, plan: dict[str, ParallelStyle], mesh: DeviceMesh) -> list[tuple[nn.Module, str]]:
    """Shard submodules and parameters by name; returns those of the style ``SHARED``."""
    parallelize_module(module, mesh, {layer: STYLES[style]() for layer, style in plan.items() if style in STYLES})
    for name in [name for name, style in plan.items() if style == STACK]:
        shard_stack(module, name, mesh)
    return [entry for name, style in plan.items() if style == SHARED for entry in parameters_of(module, name)]


def shard_stack(module: nn.Module, name: str, mesh: DeviceMesh) -> None:
    """Shard the first dimension of the parameter ``name`` of a module or its submodules."""
    owner, _, attribute = name.rpartition(".")
    parameter = module.get_parameter(name)
    sharded = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
    setattr(module.get_submodule(owner), attribute, nn.Parameter(sharded, parameter.requires_grad))


def parameters_of(module: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """The owner and attribute of the parameter ``name``, or of each parameter of the submodule ``name``."""
    names = [path for path, _ in module.named_parameters() if path == name or path.startswith(f"{name}.")]
    return [(module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]) for path in names]


def sum_gradients(parameters: list[tuple[nn.Module, str]], mesh: DeviceMesh) -> None:
    """Sum the gradients of parameters, given by module and name, over a mesh. Collective.

    Each process has the gradients of its shard of the computation only.
    """
    for module, name in parameters:
        gradient = module.get_parameter(name).grad
        if gradient is not None:
            dist.all_reduce(local_tensor(gradient), group=mesh.get_group())
