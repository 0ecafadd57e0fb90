"""Normalisation. One file per component."""

from modular_gpt.core.contracts import Norm
from modular_gpt.core.registry import decode


def norm_without_bias(name: str, eps: float, width: int) -> Norm:
    """A norm inside an attention, over vectors of ``width``, with its defaults but for ``eps`` and without a bias."""
    config = decode("norm", {"name": name, "eps": eps})
    return Norm.of(config)(Norm.of(config).resolved(config, False), width, False)
