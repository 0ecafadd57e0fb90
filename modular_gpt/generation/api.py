"""The entry points of generation: ``generate`` continues token ids, ``complete`` prompts, ``stream`` yields text."""

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

    A row that stops early is filled with its last token.

    ids: token ids as a tensor, an array or a list of lists of equal length
    max_new_tokens: None: the default of ``GenerationConfig``
    padding: (B,) number of leading columns that are padding, for prompts of different lengths (see ``left_pad``)
    draft: a smaller model, for strategy="speculative"
    settings: the fields of ``GenerationConfig``

    Raises:
        ConfigError: a setting cannot work, a prompt is empty, an id is outside the vocabulary, or a text exceeds the
            context and the positional encoding or the settings do not allow it.
        NonFiniteError: the model's logits are NaN or infinite.
    """
    config = GenerationConfig.read(max_new_tokens, settings)
    if config.logprobs:
        raise ConfigError(
            "generate returns ids alone: leave out logprobs, or call generation.complete, which returns them"
        )
    prompt = as_ids(ids, device=_device(model))
    padding = None if padding is None else as_ids(padding, "padding", prompt.device)
    continuations = Generation(model, prompt, config, padding=padding, draft=draft).finish()
    rows = [text.ids for texts in continuations for text in texts]
    longest = max(len(row) for row in rows)
    filled = [[*row, *row[-1:] * (longest - len(row))] for row in rows]
    counts = torch.tensor([len(texts) for texts in continuations], device=prompt.device)
    new = torch.tensor(filled, dtype=prompt.dtype, device=prompt.device).view(len(rows), longest)
    return torch.cat([prompt.repeat_interleave(counts, dim=0), new], dim=1)


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
    """Continue prompts of any lengths in one batch. Returns the continuations of each prompt.

    start_token: replaces an empty prompt, for example the token between documents
    draft: a smaller model, for strategy="speculative"
    decode_stream: creates a decoder of ids to text (a tokenizer's method of that name), for texts and stop strings
    device: device of the model; None: the CPU

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
    """Yield the continuation of a prompt as it is generated: complete characters, and nothing of a stop string.

    The arguments are those of ``complete``.

    Raises:
        ConfigError: as ``generate``, or num_return_sequences is not 1.
        NonFiniteError: as ``generate``.
    """
    if settings.num_return_sequences != 1:
        raise ConfigError(
            f"one text can be streamed at a time; use num_return_sequences=1 instead of {settings.num_return_sequences}"
        )
    ids, padding = prompt_batch([prompt], start_token, device)
    run = Generation(model, ids, settings, padding=padding, draft=draft, decode_stream=decode_stream)
    return (step.texts[0] for step in run if step.texts[0])
