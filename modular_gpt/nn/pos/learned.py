"""Learned absolute positions, as in GPT-2:
https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

from torch import Tensor, nn

from modular_gpt.core.contracts import Dims, Position, Positions
from modular_gpt.core.registry import ComponentConfig


class LearnedPosition(Position, name="learned"):
    """A learned vector per position, added to the token embeddings (GPT-2)."""

    embeds = True
    extrapolates = False
    slides = False

    def __init__(self, config: ComponentConfig, dims: Dims) -> None:
        super().__init__(config, dims)
        self.table = nn.Embedding(dims.context_length, dims.d_model)

    def embed(self, x: Tensor, pos: Positions) -> Tensor:
        """(B, T, D) -> (B, T, D); ``GPTModel.forward`` refuses positions beyond the table."""
        out: Tensor = x + self.table(pos.index.clamp(min=0))
        return out
