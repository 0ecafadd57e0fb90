"""The logit lens: predictions read from the residual stream between blocks.

https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from modular_gpt.generation import evaluating
from modular_gpt.inspection.activations import capture
from modular_gpt.model import GPTModel


def lens_layers(model: GPTModel, ids: Tensor) -> Iterator[Tensor]:
    """The logits (B, T, V) read from the embedding, then from the output of each block."""
    with torch.no_grad(), evaluating(model), capture(model, "embedding", "blocks.*.residual") as seen:
        model(ids)
    for stream in seen.values():
        with torch.no_grad():
            yield model.logits(stream if model.final_norm is None else model.final_norm(stream))


def logit_lens(model: GPTModel, ids: Tensor) -> Tensor:
    """The predictions that the model's head reads from the residual stream before and after each block.

    The final norm and the head are applied to the embedding and to the output of each block; the last entry equals the
    model's logits.

    Args:
        ids: (B, T) token ids

    Returns:
        logits (n_layers + 1, B, T, V)
    """
    return torch.stack(list(lens_layers(model, ids)))
