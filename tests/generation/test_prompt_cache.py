"""A cache kept between texts: tokens equal those without it, and only new tokens are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modular_gpt import ConfigError, GPTModel
from modular_gpt.generation import Generation, GenerationConfig, PromptCache
from modular_gpt.generation.compiled import compiled_step
from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sequences import TokenBuffer
from tests.generation.models import ATTENTIONS, PAIRS, SLIDING, naive_greedy, tiny


@contextmanager
def tokens_read(model: GPTModel) -> Iterator[list[int]]:
    """Context manager: the number of tokens of each forward pass."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts.append(inputs[0].numel())

    hook = model.embedding.register_forward_pre_hook(count)
    yield counts
    hook.remove()


def turn(model: GPTModel, kept: PromptCache | None, ids: list[int], count: int, **settings: Any) -> list[int]:
    """Generate ``count`` tokens after the ids; returns all ids."""
    run = Generation(model, torch.tensor([ids]), GenerationConfig(max_new_tokens=count, greedy=True, **settings))
    if kept is not None:
        run.reuse(kept)
    return [*ids, *run.finish()[0][0].ids]


@pytest.mark.parametrize("strategy", ["sample", "lookup"])
@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_turns_read_only_new_tokens(attention: str, pos: str, strategy: str) -> None:
    model = tiny(attention, pos)
    kept, ids = PromptCache(model), [1, 2, 3]
    for new in ([4], [5, 6, 7], [1, 2, 3, 4, 5]):
        before = max(len(ids) - 1, 0) if kept.ids else 0
        ids += new
        expected = naive_greedy(model, torch.tensor([ids]), 6)[0].tolist()
        with tokens_read(model) as counts:
            ids = turn(model, kept, ids, 6, strategy=strategy)
        assert ids == expected
        if strategy == "sample":
            assert sum(counts) == len(ids) - 1 - before
            assert kept.ids == ids[:-1]
        assert kept.ids == ids[: len(kept.ids)]


@pytest.mark.parametrize(("attention", "pos"), SLIDING)
def test_a_text_that_exceeds_its_context(attention: str, pos: str) -> None:
    model = tiny(attention, pos, context_length=8)
    kept, ids = PromptCache(model), [1, 2, 3]
    for new in ([4], [5, 6, 7], [1, 2, 3, 4, 5]):
        ids += new
        expected = turn(model, None, ids, 6)
        with tokens_read(model) as counts:
            assert turn(model, kept, ids, 6) == expected
        assert sum(counts) <= len(new) + 6 or len(ids) == 4
        ids = expected


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_text_with_another_ending_is_read_from_the_first_difference(attention: str) -> None:
    model = tiny(attention)
    kept = PromptCache(model)
    ids = turn(model, kept, [1, 2, 3, 4, 5, 6, 7, 8], 6)
    other = [*ids[:10], (ids[10] + 1) % 13, 3]
    expected = turn(model, None, other, 6)
    with tokens_read(model) as counts:
        assert turn(model, kept, other, 6) == expected
    goes_back = attention in ("mha", "mqa", "mla")
    assert sum(counts) == (2 + 5 if goes_back else 12 + 5)


def test_a_run_that_never_starts_leaves_the_cache() -> None:
    model = tiny()
    kept = PromptCache(model)
    ids = turn(model, kept, [1, 2, 3], 6)
    Generation(model, torch.tensor([[1, 2, 3, 4]]), GenerationConfig(max_new_tokens=2)).reuse(kept)
    assert kept.ids == ids[:-1]


def test_a_run_that_is_left_keeps_the_tokens_it_has_read() -> None:
    model = tiny()
    kept, ids = PromptCache(model), [1, 2, 3]
    run = Generation(model, torch.tensor([ids]), GenerationConfig(max_new_tokens=20, greedy=True))
    run.reuse(kept)
    steps = iter(run)
    found = [int(next(steps).tokens) for _ in range(4)]
    assert kept.ids == []
    steps.close()  # type: ignore[attr-defined]  # it is a generator
    assert kept.ids == [*ids, *found[:3]]
    assert turn(model, kept, [*ids, *found, 7], 5) == turn(model, None, [*ids, *found, 7], 5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_failed_run_clears_the_cache(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(attention)
    kept = PromptCache(model)
    ids = turn(model, kept, [1, 2, 3], 6)
    last, calls = model.blocks[-1], 0

    def interrupt(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    hook = last.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        turn(model, kept, [*ids, 4], 6)
    hook.remove()
    assert kept.ids == []
    assert turn(model, kept, [*ids, 4], 6) == turn(model, None, [*ids, 4], 6)
    kept.forget()
    assert turn(model, kept, [*ids, 4], 6) == turn(model, None, [*ids, 4], 6)


def test_compiled_steps_need_storage_of_fixed_size() -> None:
    torch._dynamo.reset()
    model = tiny(n_layers=1, context_length=16)
    kept, step, ids = PromptCache(model), compiled_step(lambda graph, inputs: graph.forward), [1, 2, 3]
    with torch.no_grad():
        for new in ([4], [5, 6]):
            ids += new
            expected = naive_greedy(model, torch.tensor([ids]), 4)[0].tolist()
            text = TokenBuffer(torch.tensor([ids]), 4)
            runner = ModelRunner(model, text, text.length + 3, step=step)
            runner.reuse(kept)
            for _ in range(4):
                text.append(runner.logits()[:, -1].argmax(-1, keepdim=True))
            runner.keep(kept)
            ids = text.ids[0].tolist()
            assert ids == expected and kept.ids == ids[:-1]
    torch._dynamo.reset()


@pytest.mark.parametrize(("settings", "rows"), [({"strategy": "beam"}, 1), ({"strategy": "contrastive"}, 1), ({}, 2)])
def test_several_rows_are_refused(settings: dict[str, Any], rows: int) -> None:
    model = tiny()
    run = Generation(model, torch.zeros(rows, 3, dtype=torch.long), GenerationConfig(max_new_tokens=2, **settings))
    with pytest.raises(ConfigError, match="a cache is kept for one text"):
        run.reuse(PromptCache(model))


def test_padding_is_refused() -> None:
    model, padding = tiny(), torch.tensor([1])
    run = Generation(model, torch.zeros(1, 3, dtype=torch.long), GenerationConfig(max_new_tokens=2), padding=padding)
    with pytest.raises(ConfigError, match="for one text without padding"):
        run.reuse(PromptCache(model))
