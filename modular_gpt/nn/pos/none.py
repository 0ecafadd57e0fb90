"""No positional encoding; a causal decoder still learns order: https://arxiv.org/abs/2203.16634"""

from modular_gpt.core.contracts import Position


class NoPosition(Position, name="none"):
    """No positional encoding: order is known only through the causal mask."""
