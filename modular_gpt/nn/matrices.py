"""Distinguish matrices, which are drawn at random, decayed and updated by Muon, from other parameters.

A parameter of two or more dimensions counts as a matrix, or as a stack of matrices, unless its module marks it: for
example the kernel of a depthwise convolution (channels, 1, width), or the weight of a norm per head (H, N).
"""

from torch import nn

from modular_gpt.core.contracts import Norm


def mark_no_matrix(module: nn.Module, *names: str) -> None:
    """Mark the parameters ``names`` of ``module`` as not being matrices.

    They keep the values that ``reset_parameters`` sets, have no weight decay, and are updated by AdamW where Muon
    updates the matrices.
    """
    marked = [*no_matrices(module), *names]
    module.no_matrix_parameters = tuple(marked)  # type: ignore[assignment]


def no_matrices(module: nn.Module) -> tuple[str, ...]:
    """Names of the parameters of ``module`` marked by ``mark_no_matrix``."""
    names: tuple[str, ...] = getattr(module, "no_matrix_parameters", ())
    return names


def is_matrix(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` is a matrix (..., rows, columns) and not an embedding table."""
    if isinstance(module, (nn.Embedding, Norm)) or name.endswith("bias") or name in no_matrices(module):
        return False
    return module.get_parameter(name).ndim >= 2
