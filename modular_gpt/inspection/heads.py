"""Measures of attention heads: where their weights go, and how much the loss depends on them."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.generation import evaluating
from modular_gpt.inspection.activations import capture, tensor_names
from modular_gpt.model import GPTModel

WEIGHTS = "blocks.{}.attention.weights"
HEADS = "blocks.{}.attention.heads"
SCORES = ("previous", "first", "itself", "induction")


@torch.no_grad()
def head_scores(model: GPTModel, length: int | None = None, rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """The attention weight that each head gives to four positions, on random tokens that are repeated once.

    previous: the token before; first: the first token; itself: the token itself; induction: the token after the
    earlier occurrence of the same token (https://arxiv.org/abs/2209.11895).

    Args:
        length: number of random tokens before they are repeated; None: 64, or half the context length
        rows: number of texts; seed: of the random tokens

    Returns:
        by name, the mean weight (n_layers, H) over texts and tokens; NaN for layers that report no weights

    Raises:
        ConfigError: two texts of ``length`` exceed the context, or no layer reports attention weights.
    """
    context = model.config.context_length
    length = min(64, context // 2) if length is None else length
    if length < 2 or 2 * length > context:
        raise ConfigError(f"length={length} must lie between 2 and half the context length, {context // 2}")
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
    with evaluating(model), capture(model, WEIGHTS.format("*")) as seen:
        model(half.repeat(1, 2).to(model.embedding.weight.device))
    layers = [_position_weights(seen[name], length) if name in seen else None for name in _names(model)]
    heads = next(layer.shape[1] for layer in layers if layer is not None)
    missing = torch.full((len(SCORES), heads), torch.nan)
    stacked = torch.stack([missing if layer is None else layer.cpu() for layer in layers], dim=1)
    return dict(zip(SCORES, stacked, strict=True))


def _names(model: GPTModel) -> list[str]:
    return [WEIGHTS.format(index) for index in range(len(model.blocks))]


def _position_weights(weights: Tensor, length: int) -> Tensor:
    """(B, H, 2 * length, 2 * length) -> (4, H): mean weight by the names of ``SCORES``."""
    previous = weights.diagonal(-1, 2, 3)
    first = weights[:, :, 1:, 0]
    itself = weights.diagonal(0, 2, 3)[..., 1:]
    induction = weights.diagonal(1 - length, 2, 3)[..., 1:]  # of the tokens of the repetition
    return torch.stack([score.float().mean((0, 2)) for score in (previous, first, itself, induction)])


@torch.no_grad()
def ablate_heads(model: GPTModel, ids: Tensor, targets: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """The rise of the loss when the output of one head is replaced by its mean over the batch (mean ablation).

    Args:
        ids: (B, T) token ids; targets: (B, T) the token that follows each, -100 where none counts
        layers: the blocks whose heads are ablated; None: all

    Returns:
        (n_layers, H) rise of the cross-entropy in nats per token, below zero where the loss falls; NaN for other layers
        and for those that do not report their heads
    """

    names = tensor_names(model)
    with evaluating(model):
        intact = _loss(model, ids, targets)
        rises = torch.full((len(model.blocks), model.config.n_heads), torch.nan)
        for layer in range(len(model.blocks)) if layers is None else layers:
            name = HEADS.format(layer)
            for head in range(model.config.n_heads if name in names else 0):
                with capture(model, edit={name: partial(_mean_of_head, head=head)}):
                    rises[layer, head] = _loss(model, ids, targets) - intact
    return rises


def _loss(model: GPTModel, ids: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = model(ids, targets).losses["cross_entropy"]
    return loss


def _mean_of_head(heads: Tensor, head: int) -> Tensor:
    """(B, H, T, M) with the output of one head replaced by its mean over texts and tokens."""
    changed = heads.clone()
    changed[:, head] = heads[:, head].mean((0, 1))
    return changed
