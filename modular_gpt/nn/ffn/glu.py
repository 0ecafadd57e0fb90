"""Gated linear units: https://arxiv.org/abs/2002.05202"""

from dataclasses import dataclass

from torch import Tensor, nn

from modular_gpt.core.contracts import Dims
from modular_gpt.core.registry import ComponentConfig, Preset, filled, plain
from modular_gpt.nn.activations import GATES, gated
from modular_gpt.nn.dense import DenseFeedForward, check_dense
from modular_gpt.nn.fused_linear import fused_linear
from modular_gpt.nn.residual import residual_linear


class GatedLinearUnit(
    DenseFeedForward["GatedLinearUnit.Config"],
    name="swiglu",
    presets={
        "geglu": Preset("A gate with GELU multiplies the widened input (Gemma).", {"activation": "gelu_tanh"}),
        "reglu": Preset("A gate with ReLU multiplies the widened input.", {"activation": "relu"}),
    },
):
    """A gate with SiLU multiplies the widened input (Llama)."""

    inputs = ("gate", "up")

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
        check_dense(config.hidden, config.activation, GATES)

    @classmethod
    def resolved(cls, config: Config, dims: Dims) -> Config:
        return filled(config, hidden=max(8, round(dims.d_model / 3) * 8), bias=dims.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D), {}"""
        gate, up = fused_linear(x, (self.gate, self.up), self.training)
        return self.down(gated(self.activation, gate, up)), {}
