"""Entry points: continue token ids, prompts of any lengths, or stream text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.stream_decoder import StreamDecoder
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.engine import Continuation, Generation
from modular_gpt.generation.protocol import LanguageModel
from modular_gpt.generation.sequences import as_ids, prompt_batch


def generate(
    model: LanguageModel,
    ids: Tensor | np.ndarray | Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    *,
    padding: Tensor | Sequence[int] | None = None,
    draft: LanguageModel | None = None,
    **settings: Any,
) -> Tensor:
    """Continue prompts: ids (B, T) -> (B * num_return_sequences, T + new), with new <= max_new_tokens.

    max_new_tokens: None: the default of ``GenerationConfig``
    ids: token ids as a tensor, an array or a list of lists of equal length
    padding: (B,) number of leading columns that are padding, for prompts of different lengths (see ``left_pad``)
    draft: a smaller model, for strategy="speculative"
    settings: the fields of ``GenerationConfig``. A row that stops early is filled with its last token.

    Raises:
        ConfigError: settings that cannot work, an empty prompt, ids outside the vocabulary, or a text longer than
            the context where position encoding or settings do not allow it.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    config = GenerationConfig.read(max_new_tokens, settings)
    if config.logprobs:
        raise ConfigError(
            "generate returns ids alone: leave out logprobs, or call generation.complete, which returns them"
        )
    prompt = as_ids(ids, device=_device(model))
    padding = None if padding is None else as_ids(padding, "padding", prompt.device)
    found = Generation(model, prompt, config, padding=padding, draft=draft).finish()
    rows = [text.ids for texts in found for text in texts]
    longest = max(len(row) for row in rows)
    new = [[*row, *row[-1:] * (longest - len(row))] for row in rows]
    times = torch.tensor([len(texts) for texts in found], device=prompt.device)
    continued = torch.tensor(new, dtype=prompt.dtype, device=prompt.device).view(len(rows), longest)
    return torch.cat([prompt.repeat_interleave(times, dim=0), continued], dim=1)


def _device(model: LanguageModel) -> torch.device | None:
    return next(model.parameters()).device if isinstance(model, torch.nn.Module) else None


def complete(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    *,
    start_token: int | None = None,
    draft: LanguageModel | None = None,
    decode_stream: Callable[[], StreamDecoder] | None = None,
    device: torch.device | None = None,
) -> list[list[Continuation]]:
    """Continue prompts of any lengths, in one batch; for each prompt its texts.

    start_token: replaces an empty prompt, for example the token between documents
    decode_stream: makes a decoder of ids to text (a tokenizer's method of that name), for texts and stop strings

    Raises:
        ConfigError: as ``generate``.
        NonFiniteError: as ``generate``.
    """
    ids, padding = prompt_batch(prompts, start_token, device)
    run = Generation(model, ids, settings, padding=padding, draft=draft, decode_stream=decode_stream)
    return run.finish()


def stream(
    model: LanguageModel,
    prompt: Sequence[int],
    settings: GenerationConfig,
    decode_stream: Callable[[], StreamDecoder],
    *,
    start_token: int | None = None,
    draft: LanguageModel | None = None,
    device: torch.device | None = None,
) -> Iterator[str]:
    """Yield the text that follows a prompt as it is generated: whole characters, and nothing of a stop string.

    Raises:
        ConfigError: as ``generate``, and for several texts.
        NonFiniteError: as ``generate``.
    """
    if settings.num_return_sequences != 1:
        raise ConfigError(
            f"one text can be streamed at a time; use num_return_sequences=1 instead of {settings.num_return_sequences}"
        )
    ids, padding = prompt_batch([prompt], start_token, device)
    run = Generation(model, ids, settings, padding=padding, draft=draft, decode_stream=decode_stream)
    return (step.texts[0] for step in run if step.texts[0])
