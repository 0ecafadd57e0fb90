"""Continue text: a tokenizer encodes the prompts and decodes their continuations."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.stream_decoder import StreamDecoder
from modular_gpt.generation.api import complete
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.protocol import LanguageModel


class TextTokenizer(Protocol):
    """The interface of the tokenizers that generation takes; those of ``modular_gpt.data`` implement it."""

    @property
    def eos_ids(self) -> Sequence[int]:
        """The ids that end a text."""

    def prompt_ids(self, text: str) -> list[int]:
        """The ids that a model reads before it continues a text."""

    def unused_ids(self, vocab_size: int) -> Iterable[int]:
        """The ids of a model's vocabulary that have no text."""

    def decode_stream(self) -> StreamDecoder:
        """A decoder of ids one by one."""


def is_text(prompts: object) -> bool:
    """Whether prompts are a text or a list of texts rather than token ids."""
    return isinstance(prompts, str) or (
        isinstance(prompts, list | tuple) and bool(prompts) and all(isinstance(prompt, str) for prompt in prompts)
    )


def generate_text(
    model: LanguageModel, prompts: str | Sequence[str], config: GenerationConfig, tokenizer: object, **models: Any
) -> str | list[str]:
    """Continue a text or several texts. Returns each prompt with its continuation, as a str or a list of them.

    tokenizer: a ``TextTokenizer``; its end tokens end a text, and ids without a text are never generated
    models: ``draft``, as for ``generate``

    Raises:
        ConfigError: there is no tokenizer, or as ``generate``.
        DataError: a character is not in the vocabulary.
    """
    if tokenizer is None:
        raise ConfigError(
            "prompts are token ids, got text: encode it with the model's tokenizer, such as [tokenizer.encode(text)];"
            " this model has no tokenizer, so give tokenizer=... or set model.tokenizer to take text"
        )
    if not all(hasattr(tokenizer, name) for name in ("prompt_ids", "unused_ids", "decode_stream", "eos_ids")):
        raise ConfigError(f"tokenizer must be one of modular_gpt.data, got a {type(tokenizer).__name__}")
    codec: Any = tokenizer
    settings = with_tokenizer(config, codec, model.config.vocab_size)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    device = next(model.parameters()).device if isinstance(model, torch.nn.Module) else None
    ids = [codec.prompt_ids(text) for text in texts]
    completed = complete(model, ids, settings, decode_stream=codec.decode_stream, device=device, **models)
    continued = [text + (new.text or "") for text, group in zip(texts, completed, strict=True) for new in group]
    return continued[0] if isinstance(prompts, str) and len(continued) == 1 else continued


def with_tokenizer(config: GenerationConfig, tokenizer: TextTokenizer, vocab_size: int) -> GenerationConfig:
    """Add the tokenizer's end tokens to the stop tokens, and suppress the ids without a text."""
    values = {**vars(config)}
    values["stop_tokens"] = [*config.stop_tokens, *(id for id in tokenizer.eos_ids if id < vocab_size)]
    values["suppress_tokens"] = [*config.suppress_tokens, *tokenizer.unused_ids(vocab_size)]
    return GenerationConfig.from_values(values)
