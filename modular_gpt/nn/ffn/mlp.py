"""Two linear layers with an activation between: https://arxiv.org/abs/1706.03762, section 3.3"""

from dataclasses import dataclass

from torch import Tensor, nn

from modular_gpt.core.contracts import Dims
from modular_gpt.core.registry import ComponentConfig, filled, plain
from modular_gpt.nn.activations import ACTIVATIONS
from modular_gpt.nn.dense import DenseFeedForward, check_dense
from modular_gpt.nn.residual import residual_linear


class MLP(DenseFeedForward["MLP.Config"], name="mlp"):
    """Widen, activate, narrow (GPT-2)."""

    inputs = ("up",)

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
        check_dense(config.hidden, config.activation, tuple(ACTIVATIONS))

    @classmethod
    def resolved(cls, config: Config, dims: Dims) -> Config:
        return filled(config, hidden=4 * dims.d_model, bias=dims.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T, D) -> (B, T, D), {}"""
        return self.down(self.activate(self.up(x))), {}
