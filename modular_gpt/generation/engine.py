"""The loop: read, choose, append, until everything has stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modular_gpt.generation.decoder import Decoder
from modular_gpt.generation.protocol import LanguageModel
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.settings import GenerationSettings
from modular_gpt.generation.text import Noise, Text, check_prompt

_STEPS_BETWEEN_CHECKS = 16  # of whether all rows have stopped, where asking makes the host wait for the device


@dataclass
class Step:
    """One new token of every row.

    tokens: (B,); a row that has stopped repeats the token that stopped it
    log_probabilities: (B,) of the tokens by the model itself, before temperature, filters and penalties
    stopped: (B,) whether the row is complete with this token or was before
    """

    tokens: Tensor
    log_probabilities: Tensor | None
    stopped: Tensor


def generate(
    model: LanguageModel, ids: Tensor, max_new_tokens: int, *, padding: Tensor | None = None, **settings: Any
) -> Tensor:
    """Continue prompts: ids (B, T) -> (B * samples, T + new), new being at most max_new_tokens.

    padding: (B,) leading columns of ids that are no text, for prompts of different lengths (see ``left_pad``)
    settings: the fields of ``GenerationSettings``. Rows that stop early are filled with the token that stopped them.

    Raises:
        ConfigError: settings that cannot work, an empty prompt, ids outside the vocabulary, or a text longer than
            the context where positions do not allow it.
    """
    asked = GenerationSettings.read(max_new_tokens, settings)
    prompt = ids.repeat_interleave(asked.samples, dim=0)
    new = [step.tokens for step in steps(model, ids, asked, padding=padding)]
    return torch.cat([prompt, torch.stack(new, dim=1)], dim=1) if new else prompt


@torch.no_grad()
def steps(
    model: LanguageModel,
    ids: Tensor,
    settings: GenerationSettings,
    *,
    padding: Tensor | None = None,
    log_probabilities: bool = False,
) -> Iterator[Step]:
    """The new tokens one step after the other; see ``generate``. Ends when every row has stopped.

    Tokens stay on the device. The host waits for it only to see whether all rows have stopped: at every step on a
    CPU, where that is free, and at every 16th elsewhere (up to 15 steps are then computed in vain and not returned
    by ``generate``); never when there are no stop tokens.
    """
    vocab_size, device = model.config.vocab_size, ids.device
    check_prompt(ids, padding, vocab_size)
    sampler = Sampler(settings, vocab_size, device)
    text = Text(ids, settings.max_new_tokens, padding)
    decoder = Decoder(model, text, ids.shape[1] + max(settings.max_new_tokens - 1, 0), settings.overflow)
    noise = None if settings.greedy else Noise(settings.seed, len(ids), settings.samples, device)
    stops = torch.tensor(settings.stop_tokens, device=device, dtype=ids.dtype)
    stopped = torch.zeros(len(ids) * settings.samples, dtype=torch.bool, device=device)
    every = 1 if device.type == "cpu" else _STEPS_BETWEEN_CHECKS
    with evaluating(model):
        for index in range(settings.max_new_tokens):
            logits = decoder.logits()[:, 0]
            if index == 0 and settings.samples > 1:
                decoder.expand(settings.samples)
                logits = logits.repeat_interleave(settings.samples, dim=0)
            uniform = None if noise is None else noise.uniform()
            tokens = sampler.choose(logits, text.ids, text.prompt_length, text.padding, uniform)
            tokens = torch.where(stopped, text.ids[:, -1], tokens)
            text.append(tokens[:, None])
            if len(stops):
                stopped = stopped | torch.isin(tokens, stops)
            scores = None
            if log_probabilities:
                scores = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            yield Step(tokens, scores, stopped)
            if len(stops) and (index + 1) % every == 0 and bool(stopped.all()):
                return


@contextmanager
def evaluating(model: LanguageModel) -> Iterator[None]:
    """Dropout off inside, and as it was after."""
    was = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(was)
