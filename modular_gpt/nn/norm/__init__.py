"""Normalisation components. One file per component."""

from modular_gpt.core.contracts import Norm
from modular_gpt.core.plain_types import PlainMapping
from modular_gpt.core.registry import decode


def inner_norm(settings: PlainMapping, width: int) -> Norm:
    """Build a norm over vectors of ``width`` from a mapping with a name; without a bias unless the mapping has one."""
    config = decode("norm", settings)
    component: type[Norm] = Norm.of(config)
    return component(component.resolved(config, False), width, False)


def norm_without_bias(name: str, eps: float, width: int) -> Norm:
    """Build the norm ``name`` over vectors of ``width`` with ``eps``, without a bias, for use inside an attention."""
    return inner_norm({"name": name, "eps": eps}, width)
