"""Short causal convolutions: each channel sees its own last few tokens, one kernel per channel (depthwise).

Primer (https://arxiv.org/abs/2109.08668) has them after the projections of attention, as most linear attentions do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.contracts import Positions
from modular_gpt.nn.matrices import mark_no_matrix


class ShortConv(nn.Module):
    """A causal depthwise convolution over the last ``kernel`` tokens, the token itself included.

    weight: (C, kernel), the token itself last; bias: (C,) or None
    """

    def __init__(self, channels: int, kernel: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None
        mark_no_matrix(self, "weight")
        self.reset_parameters()

    def forward(self, x: Tensor, pos: Positions, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, C) -> (B, T, C), and the state (B, C, kernel - 1) for the tokens after these.

        state: inputs of the tokens before these, oldest first; None: these are the first
        """
        y, state = causal_conv(x, self.weight, pos, state)
        return (y if self.bias is None else y + self.bias), state

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -(self.weight.shape[1] ** -0.5), self.weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.weight.shape[1]}, bias={self.bias is not None}"


def causal_conv(x: Tensor, weight: Tensor, pos: Positions, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve inputs (B, T, C) with kernels (C, K), the last of which meets the token itself.

    Tokens before the text of a row, or before the document of a token, count as zeros.
    state: (B, C, K - 1) inputs before these; None: zeros
    Returns (B, T, C), and the last K - 1 inputs (B, C, K - 1).
    """
    valid, width, count = pos.valid(), weight.shape[1], x.shape[1]
    if valid is not None:
        x = x * valid[..., None]
    x = x.transpose(1, 2)
    before = x.new_zeros(*x.shape[:2], width - 1) if state is None else state.to(x.dtype)
    inputs = torch.cat([before, x], dim=-1)
    last = inputs[..., count:]
    if pos.document_starts is None:
        return F.conv1d(inputs, weight[:, None], groups=x.shape[1]).transpose(1, 2), last
    total = torch.zeros_like(x)
    for tap in range(width):  # the input ``distance`` tokens before, where it belongs to the same document
        distance = width - 1 - tap
        taken = inputs[..., tap : tap + count] * (pos.index >= distance)[:, None]
        total = total + taken * weight[:, tap, None]
    return total.transpose(1, 2), last
