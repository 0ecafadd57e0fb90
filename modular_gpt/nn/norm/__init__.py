"""Normalisation components. One file per component."""

from modular_gpt.core.contracts import Norm
from modular_gpt.core.registry import decode


def norm_without_bias(name: str, eps: float, width: int) -> Norm:
    """Build the norm ``name`` over vectors of ``width`` with ``eps``, without a bias, for use inside an attention."""
    config = decode("norm", {"name": name, "eps": eps})
    component: type[Norm] = Norm.of(config)
    return component(component.resolved(config, False), width, False)
