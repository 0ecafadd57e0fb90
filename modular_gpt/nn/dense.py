"""The base class of feed-forward networks with one hidden layer."""

import torch
from torch import nn

from modular_gpt.core.contracts import COLUMNS, ROWS, FeedForward, ParallelStyle
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import C
from modular_gpt.core.validation import one_of, positive
from modular_gpt.core.weight_transfer import FeedForwardWeights, TransferReport
from modular_gpt.nn.weight_transfer import fill


class DenseFeedForward(FeedForward[C]):
    """A hidden layer: linear layers ``inputs`` into it, an activation, and the linear layer ``down`` out of it.

    inputs: the names of the linear layers into the hidden layer
    """

    inputs: tuple[str, ...]
    activation: str
    up: nn.Linear
    down: nn.Linear

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        if self.up.out_features % world_size:
            raise ConfigError(
                f"ffn.hidden={self.up.out_features} does not divide into {world_size} processes; change one"
            )
        return {**dict.fromkeys(self.inputs, COLUMNS), "down": ROWS}

    def canonical_weights(self) -> FeedForwardWeights:
        tensors = {name.removesuffix(".weight").replace(".", "_"): tensor for name, tensor in self.named_parameters()}
        return FeedForwardWeights(**{name: tensor.detach() for name, tensor in tensors.items()})

    @torch.no_grad()
    def init_from(self, source: FeedForwardWeights) -> TransferReport:
        """Copy the weights of those linear layers whose shape in ``source`` is the same."""
        report: TransferReport = {}
        for name, linear in self.named_children():
            weight = getattr(source, name, None)
            if weight is not None and weight.shape == linear.weight.shape:
                report |= fill(self, name, weight, getattr(source, f"{name}_bias"))
        return report

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


def check_dense(hidden: int | None, activation: str, activations: tuple[str, ...]) -> None:
    """Raise a ConfigError for a width below 1 or an unknown activation."""
    positive("ffn", hidden=hidden)
    one_of(activation, activations, "ffn.activation")
