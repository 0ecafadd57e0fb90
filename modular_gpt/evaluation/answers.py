"""Batched generation of answers to prompts."""

from collections.abc import Sequence

from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.likelihood import by_length
from modular_gpt.generation import Generation, GenerationConfig, left_pad
from modular_gpt.model import GPTModel


def greedy_config(model: GPTModel, tokenizer: Tokenizer, max_new_tokens: int, **settings: object) -> GenerationConfig:
    """Settings of greedy decoding that stops at the tokenizer's end of text and suppresses ids without text.

    settings: further fields of ``GenerationConfig``; they take precedence
    """
    defaults = {
        "stop_tokens": tokenizer.eos_ids,
        "suppress_tokens": tokenizer.unused_ids(model.config.vocab_size),
        "greedy": True,
        "overflow": "slide" if model.slides else "window",
    }
    return GenerationConfig.read(max_new_tokens, {**defaults, **settings})


def generate_answers(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    batch_size: int,
    first_id: int | None = None,
) -> list[str]:
    """Generate an answer to each prompt; returns the texts without the stop token or stop string.

    A prompt is truncated on the left if it leaves less than ``settings.max_new_tokens`` of the context for the answer,
    but never below half of the context.

    prompts: token ids, at least one for each prompt
    first_id: id that is kept if a truncated prompt begins with it

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    context, device = model.config.context_length, model.embedding.weight.device
    limit = max(context - settings.max_new_tokens, context // 2, 1)
    truncated = [_truncate(list(prompt), limit, first_id) for prompt in prompts]
    answers = [""] * len(prompts)
    for batch in by_length([len(prompt) for prompt in truncated], batch_size):
        ids, padding = left_pad([truncated[index] for index in batch], device)
        run = Generation(model, ids, settings, padding=padding, decode_stream=tokenizer.decode_stream)
        for index, continuations in zip(batch, run.finish(), strict=True):
            answers[index] = continuations[0].text or ""
    return answers


def _truncate(prompt: list[int], limit: int, first_id: int | None) -> list[int]:
    """The last ``limit`` ids of a prompt, of which the first is ``first_id`` if the prompt began with it."""
    if len(prompt) <= limit:
        return prompt
    first = prompt[:1] if prompt[0] == first_id and limit > 1 else []
    return [*first, *prompt[len(prompt) - limit + len(first) :]]
