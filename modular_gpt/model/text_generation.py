"""The ``generate`` method of models, for token ids and, with a tokenizer, for text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from modular_gpt.generation import TextTokenizer


class GeneratesText:
    """Mixin with the ``generate`` method of a model.

    tokenizer: encodes prompts and decodes their continuations; models that were loaded from a run or a folder have it.
        Neither the config nor the ``state_dict`` contains it.
    """

    tokenizer: "TextTokenizer | None" = None

    @overload
    def generate(self, ids: str, max_new_tokens: int | None = None, **settings: Any) -> str: ...

    @overload
    def generate(
        self, ids: Tensor | np.ndarray | Sequence[Sequence[int]], max_new_tokens: int | None = None, **settings: Any
    ) -> Tensor: ...

    @overload
    def generate(self, ids: Sequence[str], max_new_tokens: int | None = None, **settings: Any) -> list[str]: ...

    def generate(self, ids: Any, max_new_tokens: int | None = None, **settings: Any) -> Tensor | str | list[str]:
        """Continue token ids (B, T) -> (B, T + new), or a text or a list of texts, which are returned continued.

        ids: token ids, a text, or a list of texts; with ``num_return_sequences`` a text gives a list; the tokenizer's
            end tokens end a text
        settings: those of ``modular_gpt.generation.generate``; for texts also ``tokenizer``, by default the model's

        Raises:
            ConfigError: as ``modular_gpt.generation.generate``; or text without a tokenizer.
            DataError: the tokenizer does not know a character.
        """
        from modular_gpt.generation import GenerationConfig, generate, generate_text, is_text

        tokenizer = settings.pop("tokenizer", self.tokenizer)
        model: Any = self
        if not is_text(ids):
            return generate(model, ids, max_new_tokens, **settings)
        models = {"draft": settings.pop("draft")} if "draft" in settings else {}
        return generate_text(model, ids, GenerationConfig.read(max_new_tokens, settings), tokenizer, **models)
