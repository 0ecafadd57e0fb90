"""Greedy answers to prompts, several at once."""

from collections.abc import Sequence

from modular_gpt.data.tokenizers import Tokenizer
from modular_gpt.evaluation.likelihood import by_length
from modular_gpt.generation import Generation, GenerationConfig, left_pad
from modular_gpt.model import GPTModel


def greedy_config(model: GPTModel, tokenizer: Tokenizer, max_new_tokens: int, **settings: object) -> GenerationConfig:
    """Settings of generation that end at the tokenizer's end of text and never give an id without text.

    settings: further ones, or others than these
    """
    chosen = {
        "stop_tokens": tokenizer.eos_ids,
        "suppress_tokens": tokenizer.unused_ids(model.config.vocab_size),
        "greedy": True,
        "overflow": "slide" if model.slides else "window",
    }
    return GenerationConfig.read(max_new_tokens, {**chosen, **settings})


def generate_answers(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    batch_size: int,
    first_id: int | None = None,
) -> list[str]:
    """The text that a model generates after each prompt, before the token or text at which it stops.

    prompts: ids, at least one each; those that leave no room for an answer lose their beginning
    first_id: an id that stays where a prompt begins with it

    Raises:
        NonFiniteError: the model's logits are not finite.
    """
    context, device = model.config.context_length, model.embedding.weight.device
    limit = max(context - settings.max_new_tokens, context // 2, 1)
    cut = [_cut(list(prompt), limit, first_id) for prompt in prompts]
    found = [""] * len(prompts)
    for batch in by_length([len(prompt) for prompt in cut], batch_size):
        ids, padding = left_pad([cut[number] for number in batch], device)
        run = Generation(model, ids, settings, padding=padding, decode_stream=tokenizer.decode_stream)
        for number, continuations in zip(batch, run.finish(), strict=True):
            found[number] = continuations[0].text or ""
    return found


def _cut(prompt: list[int], limit: int, first_id: int | None) -> list[int]:
    """The last ``limit`` ids of a prompt; if it began with ``first_id``, it still does."""
    if len(prompt) <= limit:
        return prompt
    first = prompt[:1] if prompt[0] == first_id and limit > 1 else []
    return [*first, *prompt[len(prompt) - limit + len(first) :]]
