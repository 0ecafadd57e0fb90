"""Phi-3's longrope in texts that grow beyond the original length, where the keys of all tokens change.

``generate`` of transformers discards the cache there, and so do we.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt.generation import Generation, GenerationConfig, PromptCache, left_pad
from tests.reference.conftest import TOLERANCE, difference
from tests.reference.published import Published, published

ORIGINAL, NEW = 16, 12


@pytest.fixture
def phi3() -> Published:
    model = published("phi3", "longrope")
    assert model.ours.switch_length == ORIGINAL
    return model


@torch.no_grad()
def without_cache(model: Published, ids: Tensor, count: int = NEW) -> list[list[int]]:
    """Greedy tokens, each from a pass over the whole text."""
    for _ in range(count):
        ids = torch.cat([ids, model.ours(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids.tolist()


@pytest.mark.parametrize("prompt", [3, 10, 15, 16, 17])
@torch.no_grad()
def test_greedy_text_is_that_of_transformers(prompt: int, phi3: Published) -> None:
    ids = phi3.tokens[:, :prompt]
    expected = phi3.theirs.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert phi3.ours.generate(ids, max_new_tokens=NEW, greedy=True).tolist() == expected.tolist()
    assert expected.tolist() == without_cache(phi3, ids)


@torch.no_grad()
def test_a_cache_that_is_kept_beyond_the_length_gives_the_logits_of_transformers(phi3: Published) -> None:
    """In both, keys keep the angles with which they were computed, which is not the text read as a whole."""
    steps = [phi3.tokens[:, :10], *phi3.tokens[:, 10:].split(1, dim=1)]
    cache, past, ours, theirs = phi3.ours.new_cache(*phi3.tokens.shape), None, [], []
    for step in steps:
        out = phi3.theirs(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        theirs.append(out.logits)
        ours.append(phi3.ours(step, cache=cache))
    assert difference(torch.cat(ours, dim=1), torch.cat(theirs, dim=1)) < TOLERANCE
    assert difference(torch.cat(ours, dim=1), phi3.our_logits) > 0.1


@pytest.mark.parametrize("settings", [{}, {"strategy": "lookup", "draft_tokens": 4}], ids=str)
def test_rows_cross_the_length_at_different_steps(settings: dict[str, Any], phi3: Published) -> None:
    prompts = [phi3.tokens[0, :6].tolist(), phi3.tokens[1, :13].tolist()]
    ids, padding = left_pad(prompts)
    found = phi3.ours.generate(ids, padding=padding, max_new_tokens=NEW, greedy=True, **settings).tolist()
    for row, skipped, prompt in zip(found, padding.tolist(), prompts, strict=True):
        assert row[skipped:] == without_cache(phi3, torch.tensor([prompt]))[0]


def test_beams_and_drafts_of_a_model_cross_it_too(phi3: Published) -> None:
    ids = phi3.tokens[:1, :10]
    expected = phi3.theirs.generate(
        ids, max_new_tokens=NEW, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert phi3.ours.generate(ids, max_new_tokens=NEW, strategy="beam", num_beams=3).tolist() == expected.tolist()
    drafted = phi3.ours.generate(
        ids, max_new_tokens=NEW, greedy=True, strategy="speculative", draft=phi3.ours, draft_tokens=4
    )
    assert drafted.tolist() == without_cache(phi3, ids)


def test_a_kept_cache_is_read_again_where_the_keys_change(phi3: Published) -> None:
    kept, ids = PromptCache(phi3.ours), phi3.tokens[0, :6].tolist()
    for count in (3, 5, 4, 3):
        run = Generation(phi3.ours, torch.tensor([ids]), GenerationConfig(max_new_tokens=count, greedy=True))
        run.reuse(kept)
        new = run.finish()[0][0].ids
        assert [*ids, *new] == without_cache(phi3, torch.tensor([ids]), count)[0]
        ids = [*ids, *new]
    short = ids[:8]
    run = Generation(phi3.ours, torch.tensor([short]), GenerationConfig(max_new_tokens=2, greedy=True))
    run.reuse(kept)
    assert [*short, *run.finish()[0][0].ids] == without_cache(phi3, torch.tensor([short]), 2)[0]
