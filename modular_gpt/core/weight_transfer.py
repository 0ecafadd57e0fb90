"""Weights of a component in a canonical form, from which another implementation of its slot is initialised.

``canonical_weights`` of the replaced component describes its weights by their function and not by parameter names, so
that implementations need not know each other. ``init_from`` of the new one returns a TransferReport: the parameters
that it set, each with its derivation, which is empty where the values were copied unchanged.
"""

from dataclasses import dataclass

from torch import Tensor

TransferReport = dict[str, str]  # parameter name -> how it was derived from the source


@dataclass(frozen=True)
class AttentionWeights:
    """Projections of an attention: query (H, N, D), key (K, N, D), value (K, M, D), out (D, H, M), biases or None.

    scale: factor on the scores
    """

    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    query_bias: Tensor | None  # (H, N)
    key_bias: Tensor | None  # (K, N)
    value_bias: Tensor | None  # (K, M)
    out_bias: Tensor | None  # (D,)
    scale: float


@dataclass(frozen=True)
class FeedForwardWeights:
    """Projections of a feed-forward network: up and gate (hidden, D), down (D, hidden), with biases or None.

    gate: None where the hidden layer has no gate
    """

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate_bias: Tensor | None = None


@dataclass(frozen=True)
class NormWeights:
    """Affine map of a norm: an input of mean square 1 times ``scale`` (width,), plus ``shift`` (width,) or None."""

    scale: Tensor
    shift: Tensor | None = None
