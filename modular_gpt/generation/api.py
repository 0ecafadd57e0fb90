"""The doors of generation: token ids, prompts of any lengths, and text as it appears."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from modular_gpt.core.errors import ConfigError
from modular_gpt.generation.config import GenerationConfig
from modular_gpt.generation.engine import Continuation, Generation
from modular_gpt.generation.protocol import LanguageModel
from modular_gpt.generation.sequences import prompt_batch
from modular_gpt.generation.stopping import StreamDecoder


def generate(
    model: LanguageModel,
    ids: Tensor,
    max_new_tokens: int,
    *,
    padding: Tensor | None = None,
    draft: LanguageModel | None = None,
    **settings: Any,
) -> Tensor:
    """Continue prompts: ids (B, T) -> (B * samples, T + new), new being at most max_new_tokens.

    padding: (B,) leading columns of ids that are no text, for prompts of different lengths (see ``left_pad``)
    draft: a smaller model, for strategy="speculative"
    settings: the fields of ``GenerationConfig``. A row that stops early is filled with its last token.

    Raises:
        ConfigError: settings that cannot work, an empty prompt, ids outside the vocabulary, or a text longer than
            the context where positions or settings do not allow it.
    """
    asked = GenerationConfig.read(max_new_tokens, settings)
    run = Generation(model, ids, asked, padding=padding, draft=draft)
    found = run.finish()
    rows = [text.ids for texts in found for text in texts]
    longest = max(len(row) for row in rows)
    new = [[*row, *row[-1:] * (longest - len(row))] for row in rows]
    times = torch.tensor([len(texts) for texts in found], device=ids.device)
    continued = torch.tensor(new, dtype=ids.dtype, device=ids.device).view(len(rows), longest)
    return torch.cat([ids.repeat_interleave(times, dim=0), continued], dim=1)


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
    """Continue prompts of any lengths, in one batch; for each prompt its continuations.

    start_token: what an empty prompt starts with, such as the token that stands between documents
    decode_stream: makes a decoder of ids to text (a tokenizer's method of that name), for texts and stop strings
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
    """The text that follows a prompt, piece by piece: whole characters, and nothing of a stop string."""
    if settings.samples != 1:
        raise ConfigError(f"one text can be streamed at a time; use samples=1 instead of {settings.samples}")
    ids, padding = prompt_batch([prompt], start_token, device)
    run = Generation(model, ids, settings, padding=padding, draft=draft, decode_stream=decode_stream)
    return (step.pieces[0] for step in run if step.pieces[0])
