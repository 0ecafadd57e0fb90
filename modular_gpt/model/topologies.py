"""Topologies: the placement of the norms in a block, one function and one row of ``TOPOLOGIES`` each."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from modular_gpt.core.cache import LayerCache
from modular_gpt.core.contracts import Positions

NORMS = ("attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm")
Transformed = tuple[Tensor, dict[str, Tensor]]


class Block(Protocol):
    """A transformer block as topologies see it; a norm that its topology does not name is None and never called."""

    @property
    def attention_norm(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def ffn_norm(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def attention_post_norm(self) -> Callable[[Tensor], Tensor]: ...

    @property
    def ffn_post_norm(self) -> Callable[[Tensor], Tensor]: ...

    def attend(self, x: Tensor, pos: Positions, cache: LayerCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D): attention and dropout"""

    def feed(self, x: Tensor, pos: Positions) -> Transformed:
        """(B, T, D) -> (B, T, D): feed-forward network and dropout, and auxiliary losses"""

    def add_attention(self, x: Tensor, update: Tensor) -> Tensor:
        """The residual stream plus the output of attention, by ``residual_multiplier`` and ``residual_weights``."""

    def add_ffn(self, x: Tensor, update: Tensor) -> Tensor:
        """The residual stream plus the output of the feed-forward network, as ``add_attention``."""

    def scale(self, update: Tensor) -> Tensor:
        """The update of the residual stream times ``residual_multiplier``."""


def pre(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """x + attention(norm(x)), then x + ffn(norm(x)): GPT-2, Llama"""
    x = block.add_attention(x, block.attend(block.attention_norm(x), pos, cache))
    out, losses = block.feed(block.ffn_norm(x), pos)
    return block.add_ffn(x, out), losses


def post(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """norm(x + attention(x)), then norm(x + ffn(x)): the original transformer"""
    x = block.attention_post_norm(block.add_attention(x, block.attend(x, pos, cache)))
    out, losses = block.feed(x, pos)
    return block.ffn_post_norm(block.add_ffn(x, out)), losses


def sandwich(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """x + norm(attention(norm(x))), then the same with ffn: Gemma 2"""
    x = block.add_attention(x, block.attention_post_norm(block.attend(block.attention_norm(x), pos, cache)))
    out, losses = block.feed(block.ffn_norm(x), pos)
    return block.add_ffn(x, block.ffn_post_norm(out)), losses


def post_residual(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """x + norm(attention(x)), then the same with ffn: OLMo 2"""
    x = block.add_attention(x, block.attention_post_norm(block.attend(x, pos, cache)))
    out, losses = block.feed(x, pos)
    return block.add_ffn(x, block.ffn_post_norm(out)), losses


def norm_residual(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """x = norm(x), then x + attention(x), and the same with ffn: MiniMax-01"""
    x = block.attention_norm(x)
    x = block.ffn_norm(block.add_attention(x, block.attend(x, pos, cache)))
    out, losses = block.feed(x, pos)
    return block.add_ffn(x, out), losses


def parallel(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """x + attention(norm(x)) + ffn(norm(x)), one norm for both: GPT-J, PaLM"""
    h = block.attention_norm(x)
    attended = block.attend(h, pos, cache)
    out, losses = block.feed(h, pos)
    return x + block.scale(attended + out), losses


def parallel_two_norms(block: Block, x: Tensor, pos: Positions, cache: LayerCache | None) -> Transformed:
    """x + attention(norm(x)) + ffn(norm(x)), a norm for each: GPT-NeoX, Falcon 40B"""
    attended = block.attend(block.attention_norm(x), pos, cache)
    out, losses = block.feed(block.ffn_norm(x), pos)
    return x + block.scale(attended + out), losses


class Topology(NamedTuple):
    """The placement of the norms in a block.

    norms: those of ``NORMS`` that a block has
    forward: (block, x, positions, cache) -> (x, auxiliary losses)
    weighted: whether it adds to the residual stream by ``add_attention`` and ``add_ffn``, which weigh both terms
    """

    norms: tuple[str, ...]
    forward: Callable[[Block, Tensor, Positions, LayerCache | None], Transformed]
    weighted: bool = True


TOPOLOGIES: dict[str, Topology] = {
    "pre": Topology(("attention_norm", "ffn_norm"), pre),
    "post": Topology(("attention_post_norm", "ffn_post_norm"), post),
    "sandwich": Topology(NORMS, sandwich),
    "post_residual": Topology(("attention_post_norm", "ffn_post_norm"), post_residual),
    "norm_residual": Topology(("attention_norm", "ffn_norm"), norm_residual),
    "parallel": Topology(("attention_norm",), parallel, weighted=False),
    "parallel_two_norms": Topology(("attention_norm", "ffn_norm"), parallel_two_norms, weighted=False),
}
