"""Short causal depthwise convolutions: each channel is convolved with a separate kernel over the last few tokens.

Primer (https://arxiv.org/abs/2109.08668) has them after the projections of attention, as most linear attentions do.
"""

import torch
from torch import Tensor, nn

from modular_gpt.core.contracts import Positions
from modular_gpt.core.short_convolution import causal_conv
from modular_gpt.nn.matrices import mark_no_matrix


class ShortConv(nn.Module):
    """A causal depthwise convolution over the last ``kernel`` tokens, the token itself included.

    weight: (C, kernel), the tap of the token itself last; bias: (C,) or None
    local_channels: slice of the channels that this process computes in tensor parallelism
    """

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        self.local_channels = slice(None)  # those that this process computes
        mark_no_matrix(self, "weight")
        self.reset_parameters()

    def forward(self, x: Tensor, pos: Positions, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the state (B, C, kernel - 1) for later tokens.

        state: (B, C, kernel - 1) inputs of the tokens before these, oldest first; None: zeros
        """
        y, state = causal_conv(x, self.weight[self.local_channels], pos, state)
        return self.add_bias(y), state

    def add_bias(self, y: Tensor) -> Tensor:
        """y (B, T, C) plus the bias, if there is one."""
        return y if self.bias is None else y + self.bias[self.local_channels]

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -(self.weight.shape[1] ** -0.5), self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.weight.shape[1]}, bias={self.bias is not None}"
