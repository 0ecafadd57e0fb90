"""Text in, text out: prompts that a tokenizer encodes, continued by a model and decoded again."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.stream_decoder import StreamDecoder
from modular_gpt.generation.api import complete
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.protocol import LanguageModel


class TextTokenizer(Protocol):
    """What generation needs of a tokenizer; those of ``modular_gpt.data`` have it."""

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
    """Whether prompts are a text, or a list of texts, and not token ids."""
    return isinstance(prompts, str) or (
        isinstance(prompts, list | tuple) and bool(prompts) and all(isinstance(prompt, str) for prompt in prompts)
    )


def generate_text(
    model: LanguageModel, prompts: str | Sequence[str], config: GenerationConfig, tokenizer: object, **models: Any
) -> str | list[str]:
    """Continue a text, or several: each prompt with the text that follows it, as a str or a list of them.

    tokenizer: a ``TextTokenizer``; its end tokens end a text, and ids that it has no text for are never drawn
    models: ``draft``, as for ``generate``

    Raises:
        ConfigError: there is no tokenizer, or as ``generate``.
        DataError: a character is not in the vocabulary.
    """
    if tokenizer is None:
        raise ConfigError(
            "prompts are token ids, got text: encode it with the model's tokenizer, such as [tokenizer.encode(text)];"
            " this model has none of its own, so give tokenizer=... or set model.tokenizer to take text"
        )
    if not all(hasattr(tokenizer, name) for name in ("prompt_ids", "unused_ids", "decode_stream", "eos_ids")):
        raise ConfigError(f"tokenizer must be one of modular_gpt.data, got a {type(tokenizer).__name__}")
    reader: Any = tokenizer
    settings = with_tokenizer(config, reader, model.config.vocab_size)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    device = next(model.parameters()).device if isinstance(model, torch.nn.Module) else None
    ids = [reader.prompt_ids(text) for text in texts]
    found = complete(model, ids, settings, decode_stream=reader.decode_stream, device=device, **models)
    written = [text + (one.text or "") for text, group in zip(texts, found, strict=True) for one in group]
    return written[0] if isinstance(prompts, str) and len(written) == 1 else written


def with_tokenizer(config: GenerationConfig, tokenizer: TextTokenizer, vocab_size: int) -> GenerationConfig:
    """The settings with the tokenizer's end tokens, and without ids that it has no text for."""
    values = {**vars(config)}
    values["stop_tokens"] = [*config.stop_tokens, *(id for id in tokenizer.eos_ids if id < vocab_size)]
    values["suppress_tokens"] = [*config.suppress_tokens, *tokenizer.unused_ids(vocab_size)]
    return GenerationConfig.from_values(values)
