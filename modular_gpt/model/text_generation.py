"""``generate`` of a model: token ids by any strategy, and text where there is a tokenizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from modular_gpt.generation import TextTokenizer


class GeneratesText:
    """The methods of a model that generate.

    tokenizer: encodes prompts that are text, and decodes their continuations; models from a run or a folder have it.
        It is no setting of the model: neither the config nor the ``state_dict`` holds it.
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
        """Continue token ids (B, T) by sampling -> (B, T + new); settings as in ``modular_gpt.generation.generate``.

        ids: or a text, which is returned with its continuation (with ``num_return_sequences`` a list of them), or a
            list of texts; the tokenizer's end tokens end a text
        settings: for texts also ``tokenizer``, if it is not the model's

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
