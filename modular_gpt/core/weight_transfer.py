"""What a part with trained weights offers to a part of another kind that takes its place.

An offer says what the weights do and not what they are called, so that no kind has to know another. ``adopt`` makes
a part's own parameters from an offer as well as it can, and returns which, each with how: an empty text where they
are the same numbers, otherwise what was done.
"""

from dataclasses import dataclass

from torch import Tensor

TransferReport = dict[str, str]  # name of an own parameter -> how it was made


@dataclass(frozen=True)
class AttentionWeights:
    """query (H, N, D), key (K, N, D), value (K, M, D), out (D, H, M) with their biases, and the factor on scores."""

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
    """up, and gate where there is one, (hidden, D), and down (D, hidden), with their biases."""

    up: Tensor
    down: Tensor
    gate: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate_bias: Tensor | None = None


@dataclass(frozen=True)
class NormWeights:
    """What the normalised input, of mean square 1, is multiplied by and what is added: (width,)."""

    scale: Tensor
    shift: Tensor | None = None
