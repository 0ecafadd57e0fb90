"""Gated linear units: https://arxiv.org/abs/2002.05202"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import COLUMNS, ROWS, Dims, FeedForward, ParallelStyle
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import ComponentConfig, Preset, filled, plain
from modular_gpt.core.validation import one_of, positive
from modular_gpt.core.weight_transfer import FeedForwardWeights, TransferReport
from modular_gpt.nn.activations import GATES, gated
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.residual import residual_linear
from modular_gpt.nn.weight_transfer import dense_weights, init_dense


class GatedLinearUnit(
    FeedForward,
    name="swiglu",
    presets={
        "geglu": Preset("A gate with GELU multiplies the widened input (Gemma).", {"activation": "gelu_tanh"}),
        "reglu": Preset("A gate with ReLU multiplies the widened input.", {"activation": "relu"}),
    },
):
    """A gate with SiLU multiplies the widened input (Llama)."""

    @dataclass
    class Config(ComponentConfig):
        """Settings of a gated feed-forward network.

        hidden: Width of the hidden layer. By default (null) 8/3 d_model, rounded to a multiple of 8, which costs as
            much as an mlp of 4 d_model.
        activation: Activation of the gate: silu, gelu, gelu_tanh, relu, relu2 or clamped_swish.
        bias: Use biases. By default (null) the model's bias setting applies.
        """

        hidden: int | None = None
        activation: str = "silu"
        bias: bool | None = None

    def __init__(self, config: Config, dims: Dims) -> None:
        super().__init__(config, dims)
        self.activation = config.activation
        hidden, bias = plain(config.hidden), plain(config.bias)
        self.gate = nn.Linear(dims.d_model, hidden, bias)
        self.up = nn.Linear(dims.d_model, hidden, bias)
        self.down = residual_linear(hidden, dims.d_model, bias)

    @classmethod
    def check(cls, config: Config, dims: Dims) -> None:
        positive("ffn", hidden=config.hidden)
        one_of(config.activation, GATES, "ffn.activation")

    @classmethod
    def resolved(cls, config: Config, dims: Dims) -> Config:
        return filled(config, hidden=max(8, round(dims.d_model / 3) * 8), bias=dims.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D), {}"""
        gate, up = fused_linear(x, (self.gate, self.up), self.training)
        return self.down(gated(self.activation, gate, up)), {}

    def shard(self, rank: int, world_size: int) -> dict[str, ParallelStyle]:
        if self.up.out_features % world_size:
            raise ConfigError(
                f"ffn.hidden={self.up.out_features} does not divide into {world_size} processes; change one"
            )
        return {"gate": COLUMNS, "up": COLUMNS, "down": ROWS}

    def canonical_weights(self) -> FeedForwardWeights:
        return dense_weights(self)

    @torch.no_grad()
    def init_from(self, source: FeedForwardWeights) -> TransferReport:
        return init_dense(self, source)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
