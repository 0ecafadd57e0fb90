"""Speculative decoding changes only the speed: equal greedy text, and the same distribution of samples."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTModel
from modular_gpt.core.cache import StateCache, TokenCache
from modular_gpt.generation import Generation, GenerationConfig, generate
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import TokenBuffer
from modular_gpt.generation.strategies.speculative import LookupDrafter, SpeculativeDecoding
from tests.generation.models import PAIRS, naive_greedy, prompts, tiny


def nearly(model: GPTModel, scale: float = 0.15) -> GPTModel:
    """A draft model that often agrees: a copy with noise on its weights."""
    draft = GPTModel(model.config).eval()
    draft.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += scale * torch.randn_like(parameter) * parameter.std(correction=0)
    return draft


@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_greedy_text_equals_that_without_drafts(attention: str, pos: str) -> None:
    model, ids = tiny(attention, pos, n_layers=2), prompts(2)
    expected = naive_greedy(model, ids, 25)
    settings = GenerationConfig(max_new_tokens=25, greedy=True, strategy="speculative", draft_tokens=4)
    run = Generation(model, ids, settings, draft=nearly(model))
    assert [text.ids for [text] in run.finish()] == expected[:, 6:].tolist()
    counts = run.draft_counts
    assert 0 < counts.kept < counts.drafted, "both keeping and taking back must happen"
    assert torch.equal(generate(model, ids, 25, greedy=True, strategy="lookup"), expected)


@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_rejected_drafts_leave_no_trace_in_the_cache(attention: str, pos: str) -> None:
    model, ids, padding = tiny(attention, pos), prompts(2), torch.tensor([2, 0])
    settings = GenerationConfig(max_new_tokens=30, seed=3, strategy="speculative", logprobs=True)
    run = Generation(model, ids, settings, padding=padding, draft=nearly(model, 0.05))
    for row, [text] in enumerate(run.finish()):
        prompt = ids[row, padding[row] :].tolist()
        scores = model(torch.tensor([prompt + text.ids])).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = scores.gather(1, torch.tensor(text.ids)[:, None])[:, 0].detach()
        torch.testing.assert_close(torch.tensor(text.logprobs), expected, atol=1e-4, rtol=0)
    assert run.draft_counts.kept > 0


@pytest.mark.parametrize("draft_attention", ["mha", "swa", "linear"])
@pytest.mark.parametrize("attention", ["mha", "swa", "mla-window", "linear", "streaming"])
def test_past_the_context(attention: str, draft_attention: str) -> None:
    model, draft = tiny(attention, context_length=8), tiny(draft_attention, pos="learned", context_length=5)
    plain = generate(model, prompts(2), 40, greedy=True)
    assert torch.equal(generate(model, prompts(2), 40, greedy=True, strategy="speculative", draft=draft), plain)


def test_window_overflow_resets_at_the_same_tokens() -> None:
    model = tiny(pos="learned", context_length=8)
    plain = generate(model, prompts(2), 40, greedy=True, overflow="window")
    settings = {"greedy": True, "overflow": "window", "strategy": "speculative", "draft": nearly(model)}
    assert torch.equal(generate(model, prompts(2), 40, **settings), plain)


def test_drafts_of_the_model_itself_are_always_accepted() -> None:
    model = tiny()
    for settings in ({"greedy": True}, {"seed": 0}):
        asked = GenerationConfig(max_new_tokens=24, strategy="speculative", draft_tokens=5, **settings)
        run = Generation(model, prompts(1), asked, draft=model)
        run.finish()
        assert run.draft_counts.kept == run.draft_counts.drafted == 20
        assert run.draft_counts.rounds == 4


def test_penalties_and_stops_apply_inside_a_draft() -> None:
    model, ids = tiny(), prompts(3)
    rules = {"greedy": True, "no_repeat_ngram": 2, "repetition_penalty": 1.2, "stop_tokens": [4]}
    plain = generate(model, ids, 30, **rules)
    assert torch.equal(generate(model, ids, 30, strategy="speculative", draft=nearly(model), **rules), plain)
    assert torch.equal(generate(model, ids, 30, strategy="lookup", **rules), plain)


# ----- the distribution -------------------------------------------------------------------------------------------

V, NEW, RUNS, ROWS = 4, 3, 250, 4
RULES = {"temperature": 1.5, "top_k": 3, "repetition_penalty": 1.3}


def exact(model: GPTModel, prompt: Tensor) -> Tensor:
    """Probability of every continuation, with shape (V,) * NEW."""
    sampler = Sampler(GenerationConfig(**RULES), V, prompt.device)
    probabilities = torch.ones((V,) * NEW, dtype=torch.float64)
    for continuation in itertools.product(range(V), repeat=NEW):
        whole = torch.tensor([[*prompt[0].tolist(), *continuation]])
        with torch.no_grad():
            logits = model(whole)
        for i, token in enumerate(continuation):
            place = prompt.shape[1] + i
            p = sampler.distribution(logits[:, place - 1], TokenBuffer(whole[:, :place], 0))
            probabilities[continuation] *= p[0, token].double()
    return probabilities


def p_value(counts: Tensor, probabilities: Tensor) -> float:
    """p-value of Pearson's chi-square test; asserts that impossible outcomes have no counts."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    kept = expected > 0
    statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
    freedom = torch.tensor((kept.sum().item() - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


def sampled(model: GPTModel, prompt: Tensor, runs: int = RUNS, **settings: object) -> Tensor:
    """The number of samples of each continuation."""
    counts = torch.zeros((V,) * NEW, dtype=torch.float64)
    for seed in range(runs):
        rows = generate(model, prompt.repeat(ROWS, 1), NEW, seed=seed, draft_tokens=2, **RULES, **settings)
        for row in rows[:, prompt.shape[1] :].tolist():
            counts[tuple(row)] += 1
    return counts


@pytest.fixture(scope="module")
def small() -> tuple[GPTModel, GPTModel, Tensor, Tensor]:
    settings = {"vocab_size": V, "n_layers": 1, "d_model": 8, "n_heads": 2, "init_std": 0.6}
    model, draft = tiny(seed=1, **settings), tiny(seed=2, **settings)
    prompt = torch.tensor([[0, 1, 2, 0, 1, 2]])
    return model, draft, prompt, exact(model, prompt)


def test_a_draft_model_does_not_change_the_distribution(small: tuple[GPTModel, GPTModel, Tensor, Tensor]) -> None:
    model, draft, prompt, probabilities = small
    assert p_value(sampled(model, prompt, strategy="speculative", draft=draft), probabilities) > 1e-3


def test_lookup_does_not_change_the_distribution(small: tuple[GPTModel, GPTModel, Tensor, Tensor]) -> None:
    model, _, prompt, probabilities = small
    assert p_value(sampled(model, prompt, strategy="lookup"), probabilities) > 1e-3


def always_keep(self: SpeculativeDecoding, drafts: Tensor, *rest: object) -> Tensor:
    return torch.full_like(drafts[:, 0], drafts.shape[1])


def redraw(
    self: SpeculativeDecoding, fewest: int, kept: Tensor, drafts: Tensor, drawn_from: object, wanted: list
) -> Tensor:
    fresh = self._sampler.draw(wanted[fewest], self._generators)
    return torch.where(kept > fewest, drafts[:, fewest], fresh) if fewest < drafts.shape[1] else fresh


@pytest.mark.parametrize(("method", "wrong"), [("_accepted", always_keep), ("_last_token", redraw)])
def test_the_statistics_detect_wrong_acceptance(
    small: tuple[GPTModel, GPTModel, Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    wrong: Callable[..., Tensor],
) -> None:
    model, draft, prompt, probabilities = small
    monkeypatch.setattr(SpeculativeDecoding, method, wrong)
    with torch.no_grad():
        counts = sampled(model, prompt, runs=RUNS // 3, strategy="speculative", draft=draft)  # sufficient for the test
    assert counts[probabilities == 0].sum() > 0 or p_value(counts, probabilities) < 1e-6


@pytest.mark.parametrize(("attention", "layer_cache"), [("swa", TokenCache), ("linear", StateCache)])
def test_a_cache_without_rollback_is_detected(
    attention: str, layer_cache: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = tiny(attention), prompts(2)
    expected = naive_greedy(model, ids, 25)
    monkeypatch.setattr(layer_cache, "restore", lambda *args: None)
    drafted = generate(model, ids, 25, greedy=True, strategy="speculative", draft=nearly(model), draft_tokens=2)
    assert not torch.equal(drafted, expected)


# ----- lookup -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "padding", "drafted"),
    [
        ([1, 2, 3, 4, 9, 2, 3], 0, [4, 9, 2, 3]),  # the longest suffix, 2 3, was followed by 4
        ([1, 2, 3, 1, 2, 4, 1, 2], 0, [4, 1, 2, 4]),  # the last of two occurrences
        ([5, 6, 7], 0, []),  # none
        ([7, 7, 7], 0, [7, 7, 7, 7]),
        ([3, 8, 3, 8], 0, [3, 8, 3, 8]),
        ([0, 0, 5, 6, 0], 2, []),  # the match is padding
        ([4], 0, []),
    ],
)
def test_lookup_drafts_the_tokens_after_the_last_match(text: list[int], padding: int, drafted: list[int]) -> None:
    grown = TokenBuffer(torch.tensor([text]), 4, torch.tensor([padding]) if padding else None)
    assert LookupDrafter(grown, 3).draft(4) == [None] * len(drafted)
    assert grown.generated[0].tolist() == drafted


def test_lookup_of_rows_with_different_matches() -> None:
    grown = TokenBuffer(torch.tensor([[1, 2, 3, 4, 2], [5, 6, 7, 8, 9]]), 3)
    LookupDrafter(grown, 3).draft(3)
    assert grown.generated.tolist() == [[3, 4, 2], [9, 9, 9]]
