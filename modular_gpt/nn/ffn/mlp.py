"""Two linear layers with an activation between: https://arxiv.org/abs/1706.03762, section 3.3"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import COLUMNS, ROWS, Dims, FeedForward, ParallelStyle
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig, filled, plain
from modular_gpt.core.validation import one_of, positive
from modular_gpt.core.weight_transfer import FeedForwardWeights, TransferReport
from modular_gpt.nn.activations import ACTIVATIONS
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.weight_transfer import dense_weights, init_dense


class MLP(FeedForward, name="mlp"):
    """Widen, activate, narrow (GPT-2)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a feed-forward network of two layers.

        hidden: Width of the hidden layer. By default (null) 4 d_model.
        activation: Activation of the hidden layer: gelu, gelu_tanh, relu, relu2 or silu.
        bias: Use biases. By default (null) the model's bias setting applies.
        """

        hidden: int | None = None
        activation: str = "gelu_tanh"
        bias: bool | None = None

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.activation = config.activation
        self.activate = ACTIVATIONS[config.activation]
        hidden, bias = plain(config.hidden), plain(config.bias)
        self.up = nn.Linear(dims.d_model, hidden, bias)
        self.down = residual_linear(hidden, dims.d_model, bias)

    @classmethod
    def check(cls, config: Config, dims: Dims) -> None:
        positive("ffn", hidden=config.hidden)
        one_of(config.activation, tuple(ACTIVATIONS), "ffn.activation")

    @classmethod
    def resolved(cls, config: Config, dims: Dims) -> Config:
        return filled(config, hidden=4 * dims.d_model, bias=dims.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D), {}"""
        return self.down(self.activate(self.up(x))), {}

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        if self.up.out_features % world_size:
            raise ConfigError(
                f"ffn.hidden={self.up.out_features} does not divide into {world_size} processes; change one"
            )
        return {"up": COLUMNS, "down": ROWS}

    def canonical_weights(self) -> FeedForwardWeights:
        return dense_weights(self)

    @torch.no_grad()
    def init_from(self, source: FeedForwardWeights) -> TransferReport:
        return init_dense(self, source)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
