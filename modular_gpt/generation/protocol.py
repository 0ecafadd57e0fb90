"""What generation needs of a language model; ``GPTModel`` is one, and so is anything else of this shape."""

from typing import Any, Protocol

import torch
from torch import Tensor

from modular_gpt.core.cache import ModelCache


class ModelConfig(Protocol):
    """context_length: tokens the model was made for; vocab_size: V, ids run from 0 to V - 1."""

    context_length: int
    vocab_size: int


class LanguageModel(Protocol):
    """Logits of the next token, and a cache of what was read."""

    @property
    def config(self) -> Any:
        """A ``ModelConfig``."""

    @property
    def training(self) -> bool: ...

    @property
    def slides(self) -> bool:
        """Whether texts may go on past context_length, each token seeing the last context_length ones."""

    def train(self, mode: bool = True) -> Any: ...

    def __call__(
        self, ids: Tensor, *, cache: ModelCache, padding: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """(B, T) ids -> (B, T, V) logits, (B, 1, V) where only the last are asked for; extends the cache."""

    def new_cache(
        self,
        batch: int = 1,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        window: int | None = None,
    ) -> ModelCache:
        """An empty cache; with ``window`` no token sees more than the last ``window`` ones."""

    def hidden_states(
        self, ids: Tensor, cache: ModelCache | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T) ids -> (B, T, D) what the head reads, and losses that do not matter here."""

    def logits(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V)"""
