"""Tensor parallelism: https://arxiv.org/abs/1909.08053"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from modular_gpt.core.contracts import COLUMNS, ROWS, SHARED
from modular_gpt.core.errors import ConfigError
from modular_gpt.distributed.strategy import Parallel, ParallelConfig
from modular_gpt.model import GPTModel, TransformerBlock
from modular_gpt.model.materialize import model_from_tensors

STYLES: dict[str, type[ParallelStyle]] = {COLUMNS: ColwiseParallel, ROWS: RowwiseParallel}


class TensorParallel(Parallel, name="tensor"):
    """Each process computes some heads and hidden units of every token; other layers are replicated (DTensor)."""

    shards_weights = True

    @dataclass
    class Config(ParallelConfig):
        """Settings of tensor parallelism.

        sharded_checkpoints: Let each process write its own shards into a checkpoint, instead of gathering all weights
            on the first process.
        """

        sharded_checkpoints: bool = False

    config: Config

    @property
    def sharded_checkpoints(self) -> bool:
        return self.config.sharded_checkpoints

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        if precision == "fp16":
            raise ConfigError("parallel=tensor has no loss scaler for fp16: use trainer.precision=bf16 or float32")
        model.to(device)
        mesh = init_device_mesh(device.type, (self.processes.world,), mesh_dim_names=("tensor",))
        sharded = [self._shard_block(block, mesh) for block in model.blocks]
        if not any(sharded):
            raise ConfigError("parallel=tensor divides nothing of this attention and ffn: use parallel=fsdp")
        return model

    def _shard_block(self, block: TransformerBlock, mesh: DeviceMesh) -> bool:
        """Shard a block's attention and ffn as their ``shard`` says; False if both are replicated."""
        plan = {
            f"{name}.{layer}": style
            for name, module in (("attention", block.attention), ("ffn", block.ffn))
            for layer, style in module.shard(self.processes.rank, self.processes.world).items()
        }
        parallelize_module(block, mesh, {layer: STYLES[style]() for layer, style in plan.items() if style in STYLES})
        for layer in (layer for layer, style in plan.items() if style == SHARED):
            for parameter in parameters_of(block, layer):
                parameter.register_hook(summed)  # each process has the gradient of its own heads only
        return bool(plan)

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        """A whole copy in the first process, since caches hold the keys of all heads."""
        weights = self.gather(model.state_dict())
        if not self.processes.is_main:
            return None
        return model_from_tensors(model.config, weights, device=next(model.parameters()).device)


def parameters_of(block: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of the submodule of that name, or the parameter of that name."""
    parameters = dict(block.named_parameters())
    return [parameters[name]] if name in parameters else list(block.get_submodule(name).parameters())


def summed(gradient: Tensor) -> Tensor:
    """The sum of all processes' gradients."""
    gradient = gradient.clone()
    dist.all_reduce(gradient)
    return gradient
