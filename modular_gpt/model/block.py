"""A transformer block: attention and a feed-forward network on the residual stream."""

import torch
from torch import Tensor, nn

from modular_gpt.core.activation_checkpointing import checkpointed
from modular_gpt.core.cache import LayerCache
from modular_gpt.core.contracts import Attention, FeedForward, Norm, Position, Positions
from modular_gpt.core.observer import is_observed, report
from modular_gpt.core.registry import ComponentConfig
from modular_gpt.model.config import BlockConfig, GPTConfig
from modular_gpt.model.topologies import NORMS, TOPOLOGIES, Transformed


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network on the residual stream; the topology decides where norms are applied."""

    attention_norm: Norm  # None, as the other three, where the topology does not name it
    ffn_norm: Norm
    attention_post_norm: Norm
    ffn_post_norm: Norm

    def __init__(self, layer: BlockConfig, config: GPTConfig, position: Position) -> None:
        super().__init__()
        dims = config.dims
        self.topology = TOPOLOGIES[layer.topology]
        self.multiplier = layer.residual_multiplier
        self.residual_weights = layer.residual_weights
        self.recomputes = False  # set by GPTModel.checkpoint_activations
        self.attention: Attention = layer.attention.build(dims, position)
        self.ffn: FeedForward = layer.ffn.build(dims)
        for name in NORMS:
            setattr(self, name, build_norm(layer.norm, config) if name in self.topology.norms else None)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, pos: Positions, cache: LayerCache | None = None) -> Transformed:
        """(B, T, D) -> (B, T, D), auxiliary losses by name"""
        if self.recomputes and cache is None and torch.is_grad_enabled() and not is_observed():
            recomputed: Transformed = checkpointed(
                lambda x: self.topology.forward(self, x, pos.without_memo(), None), x
            )
            return recomputed
        return self.topology.forward(self, x, pos, cache)

    def attend(self, x: Tensor, pos: Positions, cache: LayerCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D), after dropout"""
        if isinstance(self.attention, Attention):  # it may have been replaced by any module
            x, cache = self.attention.convolve(x, pos, cache)
        out: Tensor = self.dropout(report("attention.out", self.attention(x, pos, cache)))
        return out

    def feed(self, x: Tensor, pos: Positions) -> Transformed:
        """(B, T, D) -> (B, T, D) after dropout, and auxiliary losses"""
        if isinstance(self.ffn, FeedForward):
            out, losses = self.ffn(x, pos.valid()) if self.ffn.takes_mask else self.ffn(x)
        else:  # any module that replaced it
            out, losses = self.ffn(x), {}
        return self.dropout(report("ffn.out", out)), losses

    def add_attention(self, x: Tensor, update: Tensor) -> Tensor:
        """The residual stream plus the output of attention, by ``residual_multiplier`` and ``residual_weights``."""
        return self._add(x, update, self.residual_weights and self.residual_weights[:2])

    def add_ffn(self, x: Tensor, update: Tensor) -> Tensor:
        """The residual stream plus the output of the feed-forward network, as ``add_attention``."""
        return self._add(x, update, self.residual_weights and self.residual_weights[2:])

    def _add(self, x: Tensor, update: Tensor, weights: list[float] | None) -> Tensor:
        if weights is None:
            return x + self.scale(update)
        return x * weights[0] + self.scale(update) * weights[1]

    def scale(self, update: Tensor) -> Tensor:
        """The update of the residual stream times ``residual_multiplier``."""
        return update if self.multiplier == 1.0 else update * self.multiplier


def build_norm(norm: ComponentConfig, config: GPTConfig) -> nn.Module:
    """A norm over the residual stream."""
    out: nn.Module = norm.build(config.d_model, config.bias)
    return out
