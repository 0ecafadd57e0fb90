"""A short depthwise causal convolution over tokens, which every attention can have before its projections.

A weighted sum of the last few values of each channel is added to its value: x + conv(x). This is the Canon layer at
position A of https://arxiv.org/abs/2512.17351. Published mixers also place such convolutions after the projections of
queries, keys and values (Primer, https://arxiv.org/abs/2109.08668; DeltaNet, https://arxiv.org/abs/2406.06484). Before
the projections, one convolution serves attentions of any kind, and its state is one vector of width D per token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modular_gpt.core.positions import Positions
from modular_gpt.core.weight_transfer import TransferReport


class ShortConvolution(nn.Module):
    """x + depthwise causal convolution of x, over the last ``kernel`` tokens: (B, T, D) -> (B, T, D).

    weight: (D, kernel), the token itself last
    """

    no_matrix_parameters = ("weight",)  # see nn/matrices.py

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel))
        self.reset_parameters()

    def forward(self, x: Tensor, pos: Positions, history: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)

        history: (B, D, kernel - 1) inputs before the new ones, zeros before the first; replaced by the last inputs
        """
        y, last = causal_conv(x, self.weight, pos, history)
        if history is not None:
            history.copy_(last)
        return x + y

    def init_from(self, source: "ShortConvolution | None") -> TransferReport:
        """Initialise from another convolution with as many channels; without one, x + conv(x) becomes x.

        Returns the derivation of the weight, by its name. A longer convolution than the source computes the same.
        """
        channels, kernel = self.weight.shape
        if source is None or source.weight.shape[0] != channels:
            self.weight.zero_()
            return {"weight": "zeros, as there was none"}
        taps = source.weight[:, -kernel:]
        self.weight.copy_(F.pad(taps, (kernel - taps.shape[1], 0)))
        same = source.weight.shape[1] == kernel
        return {"weight": "" if same else f"the last {taps.shape[1]} taps"}

    def reset_parameters(self) -> None:
        """Uniform in (-1, 1) / sqrt(kernel), as in nn.Conv1d."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel={self.weight.shape[1]}"


def causal_conv(x: Tensor, weight: Tensor, pos: Positions, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Convolve inputs (B, T, C) with kernels (C, K), whose last tap weighs the current token.

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
