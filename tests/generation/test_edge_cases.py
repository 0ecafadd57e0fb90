"""Values at the limits of float32, models that compute NaN, forbidden ids, and values of numpy."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from modular_gpt import ConfigError, GPTModel
from modular_gpt.core import memory
from modular_gpt.core.errors import NonFiniteError
from modular_gpt.generation import Generation, GenerationConfig, SamplingSettings, complete, generate
from modular_gpt.generation.needs import check_memory
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import TokenBuffer
from tests.generation.models import naive_greedy, prompts, tiny

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"greedy": True},
    "sample": {"seed": 0},
    "beam": {"strategy": "beam"},
    "contrastive": {"strategy": "contrastive"},
    "lookup": {"strategy": "lookup", "seed": 0},
    "speculative": {"strategy": "speculative", "seed": 0},
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
LARGEST = torch.finfo(torch.float32).max


def texts(model: GPTModel, ids: torch.Tensor, count: int, strategy: str, **settings: Any) -> torch.Tensor:
    draft = {"draft": tiny(seed=3, n_layers=1)} if strategy == "speculative" else {}
    return generate(model, ids, count, **STRATEGIES[strategy], **settings, **draft)


# ----- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-20, 1e-38, 1e-39, 1e-45, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    model, ids = tiny(), prompts(3)
    assert torch.equal(generate(model, ids, 10, temperature=temperature, seed=0), naive_greedy(model, ids, 10))


def test_the_highest_temperature_is_uniform() -> None:
    sampler = Sampler(SamplingSettings(temperature=1e30), 13, torch.device("cpu"))
    probabilities = sampler.distribution(100 * torch.randn(2, 13), TokenBuffer(prompts(), 0))
    torch.testing.assert_close(probabilities, torch.full((2, 13), 1 / 13))


@pytest.mark.parametrize(
    "settings",
    [
        {"logit_bias": {1: 3e38}, "temperature": 0.5},
        {"logit_bias": {1: 3e38, 2: -3e38}, "temperature": 1e-30},
        {"logit_bias": {1: 1e38, 2: -math.inf}, "repetition_penalty": 1e-5},
        {"logit_bias": {1: 3.4e38, 2: -3.4e38}, "frequency_penalty": -1e30, "presence_penalty": 1e30},
        {"logit_bias": {1: LARGEST}, "top_k": 2, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5},
    ],
)
def test_a_bias_at_the_edge_of_float32_chooses_its_token(settings: dict[str, Any]) -> None:
    assert generate(tiny(), prompts(2), 4, seed=0, **settings)[:, 6:].eq(1).all()


@pytest.mark.parametrize("bias", [1e39, -1e39, math.inf, math.nan])
def test_a_bias_that_float32_cannot_hold_is_refused(bias: float) -> None:
    with pytest.raises(ConfigError, match="logit_bias of token 1 must be -inf or a number that float32 can hold"):
        generate(tiny(), prompts(), 2, logit_bias={1: bias})


@pytest.mark.parametrize("penalty", [1e30, -1e30, 1000.0])
def test_a_length_penalty_that_overflows_is_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match=r"length_penalty=.* overflows for texts of 64 tokens; use a number from"):
        generate(tiny(context_length=80), prompts(), 64, strategy="beam", length_penalty=penalty)
    largest = 60 / math.log(8)
    for value in (largest, -largest):
        found = complete(tiny(), [[1, 2]], GenerationConfig(max_new_tokens=8, strategy="beam", length_penalty=value))
        assert math.isfinite(found[0][0].score or math.nan)


# ----- models that compute NaN ---------------------------------------------------------------------------------------


@every_strategy
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_logits_are_reported_by_every_strategy(strategy: str, value: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.head.weight[4] = value  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match=r"logits after \d+ tokens are not finite .* overflow float32") as caught:
        texts(model, prompts(), 5, strategy)
    assert "\n" not in str(caught.value)


def test_activations_that_overflow_float16_are_reported() -> None:
    model = tiny().half()
    with torch.no_grad():
        model.head.weight.mul_(60000)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="overflow float16"):
        generate(model, prompts(), 5)


@pytest.mark.parametrize(("every", "later"), [(1, 1), (16, 10)])
def test_logits_are_checked_in_the_first_step_and_periodically(every: int, later: int) -> None:
    model = tiny()
    run = Generation(model, prompts(), GenerationConfig(max_new_tokens=40, greedy=True))
    run._sampler._every = every  # 16 on accelerators
    steps = iter(run)
    for _ in range(7):
        next(steps)
    with torch.no_grad():
        model.head.weight.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError):
        for _ in range(later):
            next(steps)


# ----- forbidden ids -------------------------------------------------------------------------------------------------


@every_strategy
def test_forbidding_every_token_is_refused(strategy: str) -> None:
    for rules in (
        {"logit_bias": dict.fromkeys(range(13), -math.inf)},
        {"suppress_tokens": list(range(13))},
        {"logit_bias": dict.fromkeys(range(5), -math.inf), "suppress_tokens": list(range(4, 13))},
    ):
        with pytest.raises(ConfigError, match="forbid all 13 tokens, so none can be generated"):
            texts(tiny(), prompts(), 3, strategy, **rules)


@every_strategy
@pytest.mark.parametrize("seed", range(5))
def test_forbidden_tokens_are_never_generated(strategy: str, seed: int) -> None:
    allowed = {2, 7}
    never = [token for token in range(13) if token not in allowed]
    for rules in ({"suppress_tokens": never}, {"logit_bias": dict.fromkeys(never, -math.inf)}):
        found = texts(tiny(seed=seed), prompts(2), 12, strategy, **rules)[:, 6:]
        assert set(found.flatten().tolist()) <= allowed


def test_contrastive_search_repeats_no_ngram() -> None:
    left = 13 - prompts(1).unique().numel()
    for seed in range(5):
        text = generate(tiny(seed=seed), prompts(1), left, strategy="contrastive", no_repeat_ngram=1)[0]
        assert text.unique().numel() == 13, "each of the tokens left has come once"


# ----- models in use by several runs ---------------------------------------------------------------------------------


def test_dropout_stays_off_until_the_last_stream_has_ended() -> None:
    model = tiny(dropout=0.5)
    expected = naive_greedy(model, prompts(1), 12)[0, 6:].tolist()
    model.train()
    short, long = (Generation(model, prompts(1), GenerationConfig(max_new_tokens=n, greedy=True)) for n in (3, 12))
    first = iter(long)
    next(first)
    short.finish()
    assert not model.training, "the other stream still runs"
    assert [text.ids for [text] in long.finish()] == [expected]
    assert model.training


def test_a_failed_stream_restores_the_model() -> None:
    model = tiny(dropout=0.5).train()
    with torch.no_grad():
        model.head.weight.fill_(math.nan)  # type: ignore[union-attr]
    for strategy in ("sample", "beam"):
        with pytest.raises(NonFiniteError):
            texts(model, prompts(), 3, strategy)
        assert model.training


# ----- arguments in Python -------------------------------------------------------------------------------------------


def test_scalars_of_numpy_and_torch_are_accepted() -> None:
    model, ids = tiny(), prompts()
    plain = generate(model, ids, 6, temperature=0.5, top_k=4, seed=3, stop_tokens=[5], suppress_tokens=[1])
    given = generate(
        model,
        ids,
        np.int64(6),  # type: ignore[arg-type]
        temperature=np.float32(0.5),
        top_k=torch.tensor(4),
        seed=np.uint8(3),
        stop_tokens=[np.int64(5)],
        suppress_tokens=np.array([1]).tolist(),
        logprobs=np.bool_(False),
    )
    assert torch.equal(plain, given)
    config = GenerationConfig(max_new_tokens=np.int64(6), num_return_sequences=np.int32(2), seed=np.int64(0))  # type: ignore[arg-type]
    assert [len(text.ids) for text in complete(model, [np.array([1, 2])], config)[0]] == [6, 6]  # type: ignore[list-item]


@pytest.mark.parametrize("ids", [[[1, 2, 3]], ((1, 2, 3),), np.array([[1, 2, 3]], dtype=np.int16)])
def test_prompts_may_be_lists_and_arrays(ids: Any) -> None:
    expected = generate(tiny(), torch.tensor([[1, 2, 3]]), 4, greedy=True)
    assert torch.equal(tiny().generate(ids, 4, greedy=True), expected)
    padded = generate(tiny(), [[0, 1, 2, 3]], 4, padding=[1], greedy=True)
    assert torch.equal(padded[:, 1:], expected)


@pytest.mark.parametrize(
    ("ids", "padding", "message"),
    [
        ("some text", None, "prompts are token ids, got text: encode it with the model's tokenizer"),
        (["some text"], None, "prompts are token ids, got text"),
        ([1, 2], None, r"shape \(batch, tokens\), got shape \(2,\)"),
        ([[1], [2, 3]], None, "different lengths: pad them with left_pad"),
        ([[1.5]], None, "whole token ids, got list of float64"),
        (None, None, "whole token ids, got NoneType"),
        ([[]], None, "the prompt is empty"),
        ([[1, 2]], [0, 0], "padding gives the leading columns"),
        ([[1, 2]], [0.5], "padding are whole"),
        ([[1, 2]], torch.tensor([0.0]), "padding gives whole numbers of columns"),
    ],
)
def test_invalid_prompts_get_one_sentence(ids: Any, padding: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(tiny(), ids, 3, padding=padding)


def test_former_names_of_settings() -> None:
    before = GenerationConfig(samples=2, beams=3, log_probabilities=True, strategy="beam", max_new_tokens=3)
    assert before == GenerationConfig(
        num_return_sequences=2, num_beams=3, logprobs=True, strategy="beam", max_new_tokens=3
    )
    assert (before.samples, before.beams, before.log_probabilities, before.lookup_ngram) == (2, 3, True, 3)
    [found] = complete(tiny(), [[1, 2]], before)
    assert found[0].log_probabilities == found[0].logprobs and len(found) == 2
    assert generate(tiny(), prompts(1), 2, samples=3).shape == (3, 8)
    with pytest.raises(ConfigError, match="strategy=sample has no use for prompt_lookup_ngram"):
        generate(tiny(), prompts(1), 2, lookup_ngram=2)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"strategy": "beam", "num_beams": 10**7}, "num_beams=10000000"),
        ({"num_return_sequences": 10**7, "seed": 0}, "num_return_sequences=10000000"),
        ({"max_new_tokens": 2 * 10**10, "seed": 0}, "max_new_tokens=20000000000"),
        ({"max_new_tokens": 2 * 10**10, "strategy": "contrastive"}, "max_new_tokens=20000000000"),
        ({"max_new_tokens": 2 * 10**10, "strategy": "speculative", "seed": 0}, "max_new_tokens=20000000000"),
        (
            {"max_new_tokens": 10**10, "num_return_sequences": 10**6, "seed": 0},
            "num_return_sequences=1000000 with max_new_tokens=10000000000",
        ),
    ],
)
def test_generations_beyond_memory_are_refused_before_allocation(
    settings: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**30)
    draft = tiny(n_layers=1) if settings.get("strategy") == "speculative" else None
    config = GenerationConfig(**{"max_new_tokens": 3, **settings})
    with pytest.raises(ConfigError, match=rf"^{named} needs [\d,.]+ GiB of memory, and 1\.0 GiB are available"):
        Generation(tiny(), prompts(1), config, draft=draft)


def test_a_batch_beyond_memory_and_systems_of_unknown_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, config = prompts(1).expand(10**5, -1), GenerationConfig(max_new_tokens=1)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    with pytest.raises(ConfigError, match=r"^a batch of 100,000 prompts of"):
        Generation(tiny(), ids, config)
    assert generate(tiny(), prompts(1), 3, num_return_sequences=2, seed=0).shape[0] == 2, "little is not looked at"
    monkeypatch.setattr(memory, "available_bytes", lambda device: None)
    check_memory(tiny(), ids, config, None)
