"""Fully sharded data parallelism: https://arxiv.org/abs/1910.02054 (ZeRO-3), https://arxiv.org/abs/2304.11277"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._pytree import register_pytree_node

from modular_gpt.core.collectives import divide_rows_among
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import positive
from modular_gpt.distributed.deferred import allocate_shards, is_deferred
from modular_gpt.distributed.strategy import Parallel, ParallelConfig, Tensors
from modular_gpt.distributed.tensor_parallel import check_precision, gather_on_main, shard_tensors, sum_gradients
from modular_gpt.model import GPTModel
from modular_gpt.model.loss import LossOutput
from modular_gpt.runtime.device import AUTOCAST
from modular_gpt.runtime.processes import ProcessGroup


def _loss_output(loss: Tensor, losses: dict[str, Tensor], accuracy: Tensor | None) -> LossOutput:
    return LossOutput(loss, losses, accuracy=accuracy)


# fully_shard must find the tensors in the model's output, since it gathers weights before their backward pass
register_pytree_node(
    LossOutput,
    lambda output: ([output.loss, output.losses, output.accuracy], None),
    lambda values, context: _loss_output(*values),
)


class FullyShardedDataParallel(Parallel, name="fsdp"):
    """As ddp, but weights, gradients and optimizer state are sharded; weights are gathered block by block (FSDP2)."""

    shards_weights = True

    @dataclass
    class Config(ParallelConfig):
        """Settings of FSDP.

        sharded_checkpoints: Write the shards of each process into a checkpoint, instead of gathering all weights in
            the first process.
        reshard: Free the gathered weights of a block after its forward pass, and gather them again for its backward
            pass. False needs more memory and less communication.
        mixed_precision: With trainer.precision=bf16 or fp16, gather the weights of blocks in that data type instead of
            float32, which halves the communication. Activations inside a block are then rounded to it too; gradients
            are summed in float32.
        tensor: Number of consecutive processes in a group that computes like parallel=tensor. FSDP then shards the
            weights of each process over the groups. 1 is FSDP alone.
        """

        sharded_checkpoints: bool = False
        reshard: bool = True
        mixed_precision: bool = False
        tensor: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            positive("parallel", tensor=self.tensor)

    config: Config

    def __init__(self, config: Config, processes: ProcessGroup) -> None:
        super().__init__(config, processes)
        rank, world, tensor = processes.rank, processes.world, config.tensor
        if world % tensor:
            raise ConfigError(
                f"parallel.tensor={tensor} does not divide the number of processes, {world}: change one of them"
            )
        self.data_rank, self.data_world, self.state_shards = rank // tensor, world // tensor, world
        self.shards_adapters = tensor == 1

    @property
    def sharded_checkpoints(self) -> bool:
        return self.config.sharded_checkpoints

    def shard_model(self, model: GPTModel, device: torch.device, precision: str) -> GPTModel:
        mesh = init_device_mesh(device.type, (self.data_world, self.config.tensor), mesh_dim_names=("data", "tensor"))
        if self.config.tensor > 1:
            check_precision(precision)
            if not is_deferred(model):
                model.to(device)
            self.shared, self.tensor_mesh = shard_tensors(model, mesh["tensor"]), mesh["tensor"]
        divide_rows_among(mesh["data"].get_group())
        dtype = AUTOCAST.get(precision) if self.config.mixed_precision else None
        full = None if dtype is None else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=full, output_dtype=full)
        for block in model.blocks:
            fully_shard(block, mesh=mesh["data"], reshard_after_forward=self.config.reshard, mp_policy=policy)
        fully_shard(model, mesh=mesh["data"], reshard_after_forward=False)
        if is_deferred(model):
            allocate_shards(model, device)
        return model

    def finish_gradients(self) -> None:
        if self.config.tensor > 1:
            sum_gradients(self.shared, self.tensor_mesh)

    def sum(self, values: Tensors) -> Tensors:
        """Sum over all rows of the batch. The processes of a tensor group have the same rows, which count once."""
        return {name: value / self.config.tensor for name, value in self.processes.all_reduce_sum(values).items()}

    def model_to_generate(self, model: GPTModel) -> GPTModel | None:
        return model if self.config.tensor == 1 else gather_on_main(self, model)
