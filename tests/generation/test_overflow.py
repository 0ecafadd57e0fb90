"""Past the context: ``slide`` limits attention to a window, ``window`` reads the last half again."""

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.generation import Generation, GenerationConfig, generate
from tests.generation.models import ATTENTIONS, PAIRS, SLIDING, naive_greedy, prompts, tiny

CONTEXT = 8
NEW = 18  # tokens: the window moves by more than two contexts and is reset four times


def limited(model: GPTModel, attention: str, pos: str) -> GPTModel:
    """The same weights in a model whose config limits attention to CONTEXT tokens."""
    settings = dict(ATTENTIONS[attention])
    if attention != "linear":
        settings["window"] = min(settings.get("window", CONTEXT), CONTEXT)
    twin = GPTModel(model.config.to_dict() | {"attention": settings}).eval()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("length", [3, 21])
@pytest.mark.parametrize(("attention", "pos"), SLIDING)
def test_sliding_equals_a_full_pass_with_limited_attention(attention: str, pos: str, length: int) -> None:
    model = tiny(attention, pos, context_length=CONTEXT)
    expected = naive_greedy(limited(model, attention, pos), prompts(2, length), NEW)
    assert torch.equal(generate(model, prompts(2, length), NEW, greedy=True), expected)


def test_sliding_forgets_tokens_outside_the_window() -> None:
    model = tiny(context_length=CONTEXT, n_layers=1)
    ids = prompts(1, 30)
    other = ids.clone()
    other[:, : 30 - CONTEXT] = (other[:, : 30 - CONTEXT] + 1) % 13
    assert torch.equal(generate(model, ids, 10, greedy=True)[:, 30:], generate(model, other, 10, greedy=True)[:, 30:])


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_sliding_keeps_the_memory_of_one_context(attention: str) -> None:
    model = tiny(attention, context_length=CONTEXT)
    run = Generation(model, prompts(2), GenerationConfig(max_new_tokens=100, seed=0))
    run.finish()
    assert run.cache_bytes() == model.config.cache_bytes(2, CONTEXT)


@torch.no_grad()
def reread(model: GPTModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    """``overflow=window`` without a cache."""
    first = 0
    for _ in range(count):
        if ids.shape[1] - first > CONTEXT:
            first = ids.shape[1] - CONTEXT // 2
        ids = torch.cat([ids, model(ids[:, first:])[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


@pytest.mark.parametrize("length", [3, 21])
@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_window_reads_the_last_half_again(attention: str, pos: str, length: int) -> None:
    model = tiny(attention, pos, context_length=CONTEXT)
    expected = reread(model, prompts(2, length), NEW)
    assert torch.equal(generate(model, prompts(2, length), NEW, greedy=True, overflow="window"), expected)


def test_window_of_prompts_of_different_lengths() -> None:
    model = tiny(pos="learned", context_length=CONTEXT)
    ids, padding = torch.tensor([[0, 0, 0, 0, 5], [1, 2, 3, 4, 5]]), torch.tensor([4, 0])
    rows = generate(model, ids, 30, padding=padding, greedy=True, overflow="window")
    assert torch.equal(rows[1:], generate(model, ids[1:], 30, greedy=True, overflow="window"))
    # the first row shares the columns at which the window is reset: after the first reset it has no padding
    text, first = [5], 4
    for column in range(5, 35):
        if column - first > CONTEXT - (4 if first == 4 else 0):
            first = column - CONTEXT // 2
        expected = model(torch.tensor([text[max(first - 4, 0) :]]))[0, -1].argmax().item()
        assert rows[0, column].item() == expected
        text.append(expected)


@pytest.mark.parametrize("strategy", ["beam", "contrastive", "lookup"])
@pytest.mark.parametrize(("pos", "overflow"), [("rope", "slide"), ("learned", "window")])
def test_other_strategies_extend_past_the_context(strategy: str, pos: str, overflow: str) -> None:
    model = tiny(pos=pos, context_length=CONTEXT)
    extra = {"greedy": True} if strategy == "lookup" else {}
    rows = generate(model, prompts(2, 3), 40, strategy=strategy, overflow=overflow, **extra)
    assert rows.shape == (2, 43)
    if strategy == "lookup":
        assert torch.equal(rows, generate(model, prompts(2, 3), 40, greedy=True, overflow=overflow))
