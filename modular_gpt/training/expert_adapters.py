"""Low-rank adapters of stacked matrices, such as the experts of a mixture, which are no linear layers for peft."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class StackAdapter(nn.Module):
    """A parametrization: the stacked weights (E, out, in) plus a product of rank r for each of the E matrices."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        stacks, width_out, width_in = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(stacks, rank, width_in))
        self.lora_B = nn.Parameter(weight.new_zeros(stacks, width_out, rank))
        self.scale = alpha / rank
        self.enabled = True
        for matrix in self.lora_A:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))  # as peft draws those of linear layers

    def delta(self) -> Tensor:
        """(E, out, in) update of the weights."""
        return torch.bmm(self.lora_B, self.lora_A) * self.scale

    def forward(self, weight: Tensor) -> Tensor:
        """(E, out, in) -> the same shape"""
        return weight + self.delta().to(weight.dtype) if self.enabled else weight


def adapt_stack(module: nn.Module, name: str, rank: int, alpha: float) -> StackAdapter:
    """Add an adapter to the parameter ``name`` (E, out, in) of ``module``, and freeze the parameter."""
    weight = module.get_parameter(name)
    weight.requires_grad_(False)
    adapter = StackAdapter(weight.detach(), rank, alpha)
    parametrize.register_parametrization(module, name, adapter)
    return adapter
