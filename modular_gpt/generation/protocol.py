"""The interface of the language models that generation takes. ``GPTModel`` implements it; other models can."""

from typing import Protocol

import torch
from torch import Tensor

from modular_gpt.core.cache import ModelCache
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.validation import shown


class ModelConfig(Protocol):
    """Settings of a model.

    context_length: number of tokens of a training window; vocab_size: V, ids run from 0 to V - 1
    """

    context_length: int
    vocab_size: int

    def cache_bytes(self, batch: int, tokens: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes of the cache of ``batch`` rows of ``tokens`` tokens."""


class LanguageModel(Protocol):
    """Computes logits of the next token and extends a cache of the tokens read."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def training(self) -> bool: ...

    @property
    def slides(self) -> bool:
        """Whether a text may exceed context_length while each token attends to the last context_length tokens."""

    def train(self, mode: bool = True) -> object: ...

    def __call__(
        self, ids: Tensor, *, cache: ModelCache, padding: Tensor | None = None, last_only: bool = False
    ) -> Tensor:
        """(B, T) ids -> (B, T, V) logits, or (B, 1, V) with ``last_only``; extends the cache."""

    def new_cache(
        self,
        batch: int = 1,
        max_length: int | None = None,
        dtype: torch.dtype | None = None,
        window: int | None = None,
    ) -> ModelCache:
        """An empty cache; with ``window`` each token attends to the last ``window`` tokens at most."""

    def hidden_states(
        self, ids: Tensor, cache: ModelCache | None = None, padding: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, T) ids -> (B, T, D) inputs of the output head, and auxiliary losses, which are not used here."""

    def logits(self, x: Tensor) -> Tensor:
        """The output head: (..., D) -> (..., V)."""


def switch_length(model: LanguageModel) -> int | None:
    """Length in tokens beyond which all keys of a text change; None: they never do, as in usual models."""
    length: int | None = getattr(model, "switch_length", None)
    return length


def check_models(**models: object) -> None:
    """Raise a ConfigError for a value that is neither None nor a language model, such as the name of one."""
    for name, value in models.items():
        if value is None or all(hasattr(value, needed) for needed in ("config", "new_cache")):
            continue
        given = shown(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
        raise ConfigError(
            f"{name} must be a model, got {given}; modular_gpt.load_model(<name>).model opens one by its name"
        )
