"""Marks of the parameters that write into the residual stream, which initialisation scales down."""

from torch import nn


def residual_linear(d_in: int, d_out: int, bias: bool) -> nn.Linear:
    """A linear layer whose output is added to the residual stream."""
    linear = nn.Linear(d_in, d_out, bias)
    mark_residual(linear, "weight")
    return linear


def mark_residual(module: nn.Module, *names: str) -> None:
    """Say that the parameters ``names`` of ``module`` write into the residual stream."""
    module.residual_parameters = names  # type: ignore[assignment]


def is_residual(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` writes into the residual stream."""
    return name in getattr(module, "residual_parameters", ())
