"""Tensor parallelism: https://arxiv.org/abs/1909.08053"""

from dataclasses import dataclass
from typing import Any

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
    """Each process computes some heads and some hidden units of every token; embeddings, norms and experts are computed
    by all of them (PyTorch's DTensor)."""

    divides = True

    @dataclass
    class Config(ParallelConfig):
        """Settings of tensor parallelism.

        sharded_checkpoints: Let each process write its own shards into a checkpoint, instead of gathering all weights
            on the first process.
        """

        sharded_checkpoints: bool = False

    @property
    def sharded_checkpoints(self) -> bool:
        return bool(self.config.sharded_checkpoints)

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        if precision == "fp16":
            raise ConfigError("parallel=tensor has no loss scaler for fp16: use trainer.precision=bf16 or float32")
        model.to(device)
        mesh = init_device_mesh(device.type, (self.processes.world,), mesh_dim_names=("tensor",))
        divided = [self._divide(block, mesh) for block in model.blocks]
        if not any(divided):
            raise ConfigError("parallel=tensor divides nothing of this attention and ffn: use parallel=fsdp")
        return model

    def _divide(self, block: TransformerBlock, mesh: DeviceMesh) -> bool:
        """Divide one block as its parts say; False where they say nothing."""
        parts: dict[str, Any] = {"attention": block.attention, "ffn": block.ffn}
        plan = {
            f"{name}.{layer}": how
            for name, part in parts.items()
            for layer, how in part.shard(self.processes.rank, self.processes.world).items()
        }
        parallelize_module(block, mesh, {layer: STYLES[how]() for layer, how in plan.items() if how in STYLES})
        for layer in (layer for layer, how in plan.items() if how == SHARED):
            parent, _, last = layer.rpartition(".")
            found: Any = getattr(block.get_submodule(parent), last)
            for parameter in found.parameters() if isinstance(found, nn.Module) else [found]:
                parameter.register_hook(summed)  # each process knows what its own heads ask of it
        return bool(plan)

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        """A whole copy in the first process: caches are as large as all heads need."""
        weights = self.gather(model.state_dict())
        if not self.processes.is_main:
            return None
        return model_from_tensors(model.config, weights, device=next(model.parameters()).device)


def summed(gradient: Tensor) -> Tensor:
    """The sum of all processes' gradients."""
    gradient = gradient.clone()
    dist.all_reduce(gradient)
    return gradient
