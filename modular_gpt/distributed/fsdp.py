"""Fully sharded data parallelism: https://arxiv.org/abs/1910.02054 (ZeRO-3), https://arxiv.org/abs/2304.11277"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._pytree import register_pytree_node

from modular_gpt.distributed.deferred import allocate_shards, is_deferred
from modular_gpt.distributed.strategy import Parallel, ParallelConfig
from modular_gpt.model import GPTModel
from modular_gpt.model.loss import LossOutput
from modular_gpt.runtime.device import AUTOCAST
from modular_gpt.runtime.processes import ProcessGroup


def _loss_output(loss: Tensor, losses: dict[str, Tensor], accuracy: Tensor | None) -> LossOutput:
    return LossOutput(loss, losses, accuracy=accuracy)


# fully_shard looks for tensors in the model's output, before whose backward pass it gathers weights
register_pytree_node(
    LossOutput,
    lambda output: ([output.loss, output.losses, output.accuracy], None),
    lambda values, context: _loss_output(*values),
)


class FullyShardedDataParallel(Parallel, name="fsdp"):
    """As ddp, but weights, gradients and optimizer state are sharded; weights are gathered block by block (FSDP2)."""

    shards_weights = shards_adapters = True

    @dataclass
    class Config(ParallelConfig):
        """Settings of FSDP.

        sharded_checkpoints: Let each process write its own shards into a checkpoint, instead of gathering all weights
            on the first process.
        reshard: Free a block's gathered weights between its forward and its backward pass, which gather them again.
            False needs more memory and sends less.
        mixed_precision: With trainer.precision=bf16 or fp16, gather the weights of blocks in that data type instead of
            float32, which halves the traffic. Activations inside a block are then rounded to it too; gradients are
            summed in float32.
        """

        sharded_checkpoints: bool = False
        reshard: bool = True
        mixed_precision: bool = False

    config: Config

    def __init__(self, config: Config, processes: ProcessGroup) -> None:
        super().__init__(config, processes)
        self.data_rank, self.data_world, self.state_shards = processes.rank, processes.world, processes.world

    @property
    def sharded_checkpoints(self) -> bool:
        return self.config.sharded_checkpoints

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        mesh = init_device_mesh(device.type, (self.processes.world,), mesh_dim_names=("data",))
        dtype = AUTOCAST.get(precision) if self.config.mixed_precision else None
        full = None if dtype is None else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=full, output_dtype=full)
        for block in model.blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=self.config.reshard, mp_policy=policy)
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        if is_deferred(model):
            allocate_shards(model, device)
        return model
