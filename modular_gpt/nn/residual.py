"""Marks parameters whose output is added to the residual stream; initialisation scales these down."""

from torch import nn


def residual_linear(d_in: int, d_out: int, bias: bool) -> nn.Linear:
    """A linear layer whose output is added to the residual stream."""
    linear = nn.Linear(d_in, d_out, bias)
    mark_residual(linear, "weight")
    return linear


def mark_residual(module: nn.Module, *names: str) -> None:
    """Mark the parameters ``names`` of ``module`` as writing into the residual stream."""
    module.residual_parameters = names  # type: ignore[assignment]


def is_residual(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` writes into the residual stream."""
    return name in getattr(module, "residual_parameters", ())
