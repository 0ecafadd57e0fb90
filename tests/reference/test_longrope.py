"""Phi-3's longrope in texts that grow beyond the original length, at which the rotation of all keys changes.

``generate`` of transformers discards the cache at that length, and so does ours.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt.generation import Generation, GenerationConfig, PromptCache, left_pad
from tests.reference.conftest import TOLERANCE, difference
from tests.reference.model_pairs import ModelPair, model_pair

ORIGINAL, NEW = 16, 12


@pytest.fixture
def phi3() -> ModelPair:
    pair = model_pair("phi3", "longrope")
    assert pair.model.switch_length == ORIGINAL
    return pair


@torch.no_grad()
def without_cache(pair: ModelPair, ids: Tensor, count: int = NEW) -> list[list[int]]:
    """Return ``ids`` and ``count`` greedy tokens, each from a pass over the whole text."""
    for _ in range(count):
        ids = torch.cat([ids, pair.model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids.tolist()


@pytest.mark.parametrize("prompt", [3, 10, 15, 16, 17])
@torch.no_grad()
def test_greedy_text_equals_that_of_transformers(prompt: int, phi3: ModelPair) -> None:
    ids = phi3.tokens[:, :prompt]
    expected = phi3.hf_model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert phi3.model.generate(ids, max_new_tokens=NEW, greedy=True).tolist() == expected.tolist()
    assert expected.tolist() == without_cache(phi3, ids)


@torch.no_grad()
def test_a_cache_kept_beyond_the_original_length_gives_the_logits_of_transformers(phi3: ModelPair) -> None:
    """In both, cached keys keep their former rotation, so the logits differ from those of one pass over the text."""
    steps = [phi3.tokens[:, :10], *phi3.tokens[:, 10:].split(1, dim=1)]
    cache, past, logits, hf_logits = phi3.model.new_cache(*phi3.tokens.shape), None, [], []
    for step in steps:
        out = phi3.hf_model(step, past_key_values=past, use_cache=True)
        past = out.past_key_values
        hf_logits.append(out.logits)
        logits.append(phi3.model(step, cache=cache))
    assert difference(torch.cat(logits, dim=1), torch.cat(hf_logits, dim=1)) < TOLERANCE
    assert difference(torch.cat(logits, dim=1), phi3.logits) > 0.1


@pytest.mark.parametrize("settings", [{}, {"strategy": "lookup", "draft_tokens": 4}], ids=str)
def test_rows_may_reach_the_original_length_at_different_steps(settings: dict[str, Any], phi3: ModelPair) -> None:
    prompts = [phi3.tokens[0, :6].tolist(), phi3.tokens[1, :13].tolist()]
    ids, padding = left_pad(prompts)
    found = phi3.model.generate(ids, padding=padding, max_new_tokens=NEW, greedy=True, **settings).tolist()
    for row, pad, prompt in zip(found, padding.tolist(), prompts, strict=True):
        assert row[pad:] == without_cache(phi3, torch.tensor([prompt]))[0]


def test_beam_search_and_speculative_decoding_beyond_the_original_length(phi3: ModelPair) -> None:
    ids = phi3.tokens[:1, :10]
    expected = phi3.hf_model.generate(
        ids, max_new_tokens=NEW, num_beams=3, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert phi3.model.generate(ids, max_new_tokens=NEW, strategy="beam", num_beams=3).tolist() == expected.tolist()
    drafted = phi3.model.generate(
        ids, max_new_tokens=NEW, greedy=True, strategy="speculative", draft=phi3.model, draft_tokens=4
    )
    assert drafted.tolist() == without_cache(phi3, ids)


def test_a_prompt_cache_is_recomputed_where_the_rotation_changes(phi3: ModelPair) -> None:
    prompt_cache, ids = PromptCache(phi3.model), phi3.tokens[0, :6].tolist()
    for count in (3, 5, 4, 3):
        run = Generation(phi3.model, torch.tensor([ids]), GenerationConfig(max_new_tokens=count, greedy=True))
        run.reuse(prompt_cache)
        new = run.finish()[0][0].ids
        assert [*ids, *new] == without_cache(phi3, torch.tensor([ids]), count)[0]
        ids = [*ids, *new]
    short = ids[:8]
    run = Generation(phi3.model, torch.tensor([short]), GenerationConfig(max_new_tokens=2, greedy=True))
    run.reuse(prompt_cache)
    assert [*short, *run.finish()[0][0].ids] == without_cache(phi3, torch.tensor([short]), 2)[0]
