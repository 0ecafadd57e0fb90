"""Which parameters are matrices: initialisation draws them, weight decay shrinks them, Muon orthogonalises them.

A parameter with rows and columns counts as a matrix, or as a stack of matrices, unless its module marks it as none: the
kernel of a depthwise convolution (channels, 1, width), or a norm's weight for each head (H, N).
"""

from torch import nn

from modular_gpt.core.contracts import Norm


def mark_no_matrix(module: nn.Module, *names: str) -> None:
    """Mark parameters ``names`` of ``module`` as no matrices.

    Initialisation leaves them as the module's ``reset_parameters`` sets them, they have no weight decay, and AdamW
    updates them where Muon updates matrices.
    """
    marked = [*no_matrices(module), *names]
    module.no_matrix_parameters = tuple(marked)  # type: ignore[assignment]


def no_matrices(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters that ``mark_no_matrix`` has marked."""
    names: tuple[str, ...] = getattr(module, "no_matrix_parameters", ())
    return names


def is_matrix(module: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` of ``module`` is a matrix (..., rows, columns) and no table of embeddings."""
    if isinstance(module, (nn.Embedding, Norm)) or name.endswith("bias") or name in no_matrices(module):
        return False
    return module.get_parameter(name).ndim >= 2
