"""Measures of attention heads: their attention weights, and the rise of the loss without them."""

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


def attention_maps(model: GPTModel, ids: Tensor, layers: Sequence[int] | None = None) -> dict[int, Tensor]:
    """The attention weights (B, H, T, T) of each head by layer, for the layers that report weights.

    Weights without a softmax may be negative and sum to any number; they are returned as absolute values, as fractions
    of their row. Short convolutions have a kernel for each channel and no heads: H is 1, the mean over channels.

    Args:
        ids: (B, T) token ids; layers: the blocks; None: all
    """
    blocks = range(len(model.blocks))
    names = {layer: WEIGHTS.format(layer) for layer in (blocks if layers is None else layers)}
    reported, found = tensor_names(model), {}
    for layer, name in names.items():
        if name in reported:  # one layer in memory at a time
            with torch.no_grad(), evaluating(model), capture(model, name, stop=name) as seen:
                model(ids)
            found[layer] = _shares(model, layer, seen[name])
    return found


def _shares(model: GPTModel, layer: int, weights: Tensor) -> Tensor:
    attention = model.config.layer_configs[layer].attention_class
    if attention.accepts_bias:
        return weights
    sizes = weights.abs()
    if attention.heads_are_channels:
        sizes = sizes.mean(1, keepdim=True)
    return sizes / sizes.sum(-1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)


def head_scores(model: GPTModel, length: int | None = None, rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """The attention weight that each head gives to four positions, on random tokens that are repeated once.

    previous: the token before; first: the first token; itself: the token itself; induction: the token after the
    earlier occurrence of the same token (https://arxiv.org/abs/2209.11895). Of an attention without a softmax, shares
    of the absolute weights, as in ``attention_maps``.

    Args:
        length: number of random tokens before they are repeated; None: 64, or half the context length
        rows: number of texts; seed: of the random tokens

    Returns:
        by name, the mean weight (n_layers, H) over texts and tokens, with H the largest number of heads of a layer;
        NaN for heads that a layer does not have, and for layers that report no weights

    Raises:
        ConfigError: two texts of ``length`` exceed the context, or no layer reports attention weights.
    """
    context = model.config.context_length
    length = min(64, context // 2) if length is None else length
    if length < 2 or 2 * length > context:
        raise ConfigError(f"length={length} must lie between 2 and half the context length, {context // 2}")
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
    maps = attention_maps(model, half.repeat(1, 2).to(model.embedding.weight.device))
    if not maps:
        raise ConfigError("no layer of this model reports attention weights, from which head_scores measures")
    heads = max(weights.shape[1] for weights in maps.values())
    scores = torch.full((len(SCORES), len(model.blocks), heads), torch.nan)
    for layer, weights in maps.items():
        scores[:, layer, : weights.shape[1]] = _position_weights(weights, length).cpu()
    return dict(zip(SCORES, scores, strict=True))


def _position_weights(weights: Tensor, length: int) -> Tensor:
    """(B, H, 2 * length, 2 * length) -> (4, H): mean weight by the names of ``SCORES``."""
    previous = weights.diagonal(-1, 2, 3)
    first = weights[:, :, 1:, 0]
    itself = weights.diagonal(0, 2, 3)[..., 1:]
    induction = weights.diagonal(1 - length, 2, 3)[..., 1:]  # of the tokens of the repetition
    return torch.stack([score.float().mean((0, 2)) for score in (previous, first, itself, induction)])


def head_counts(model: GPTModel) -> list[int]:
    """The number of heads of each layer; 0 for layers that report none, and for short convolutions."""
    with torch.no_grad(), evaluating(model), capture(model) as seen:
        model(torch.zeros(1, 1, dtype=torch.long, device=model.embedding.weight.device))
    counts = []
    for layer, config in enumerate(model.config.layer_configs):
        name = HEADS.format(layer)
        counts.append(seen[name].shape[1] if name in seen and not config.attention_class.heads_are_channels else 0)
    return counts


@torch.no_grad()
def ablate_heads(model: GPTModel, ids: Tensor, targets: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """The rise of the loss when the output of one head is replaced by its mean over the batch (mean ablation).

    Args:
        ids: (B, T) token ids; targets: (B, T) the token that follows each, -100 where none counts
        layers: the blocks whose heads are ablated; None: all

    Returns:
        (n_layers, H) rise of the cross-entropy in nats per token, below zero where the loss falls, with H the largest
        number of heads of a layer; NaN for heads that a layer does not have, for other layers, for those that do not
        report their heads, and for short convolutions, which have none
    """
    counts = head_counts(model)
    with evaluating(model):
        intact = _loss(model, ids, targets)
        rises = torch.full((len(counts), max(1, *counts)), torch.nan)
        for layer in range(len(counts)) if layers is None else layers:
            for head in range(counts[layer]):
                with capture(model, edit={HEADS.format(layer): partial(_mean_of_head, head=head)}):
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
