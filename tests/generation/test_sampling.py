"""Sampling functions equal transformers' processors on the same logits, and satisfy further laws."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modular_gpt.generation import SamplingSettings, sampling
from modular_gpt.generation.sampling import Sampler
from modular_gpt.generation.sequences import RowGenerators, TokenBuffer

V = 50
CPU = torch.device("cpu")


def some_logits(batch: int = 4, spread: float = 3.0) -> Tensor:
    return torch.randn(batch, V) * spread


def processor_of(name: str, *args: object, **keywords: object):
    from transformers.generation import logits_process

    return getattr(logits_process, name)(*args, **keywords)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_temperature(temperature: float) -> None:
    logits = some_logits()
    got = sampling.scale(logits, temperature)
    expected = processor_of("TemperatureLogitsWarper", temperature)(None, logits)
    torch.testing.assert_close(got, expected - expected.amax(-1, keepdim=True))


@pytest.mark.parametrize("k", [1, 3, V, 2 * V])
def test_top_k(k: int) -> None:
    logits = some_logits()
    logits[0, :10] = logits[0].max()  # ties at the threshold are all kept
    torch.testing.assert_close(sampling.keep_top_k(logits, k), processor_of("TopKLogitsWarper", k)(None, logits))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(
    ("keep", "name"),
    [
        (sampling.keep_top_p, "TopPLogitsWarper"),
        (sampling.keep_min_p, "MinPLogitsWarper"),
        (sampling.keep_typical, "TypicalLogitsWarper"),
    ],
)
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("few", [1, 10, 1024])  # numbers of tokens that are sorted first
def test_filters_by_probability(
    keep: Callable[[Tensor, float], Tensor],
    name: str,
    p: float,
    spread: float,
    few: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "_FEW", few)
    logits = some_logits(16, spread)
    torch.testing.assert_close(keep(logits, p), processor_of(name, p)(None, logits))
    filtered = sampling.keep_top_k(logits, 7)  # also after another filter
    torch.testing.assert_close(keep(filtered, p), processor_of(name, p)(None, filtered))


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_repetition_penalty(penalty: float) -> None:
    logits, ids = some_logits(), torch.randint(0, V, (4, 20))
    got = sampling.penalise_repetition(logits, sampling.token_counts(ids, V), penalty)
    torch.testing.assert_close(got, processor_of("RepetitionPenaltyLogitsProcessor", penalty)(ids, logits))


def test_frequency_and_presence_penalty_by_their_definition() -> None:
    logits, ids = some_logits(), torch.randint(0, V, (4, 30))
    got = sampling.penalise_counts(logits, sampling.token_counts(ids, V), 0.3, 1.1)
    for row in range(4):
        for token in range(V):
            count = ids[row].tolist().count(token)
            expected = logits[row, token].item() - 0.3 * count - 1.1 * (count > 0)
            assert got[row, token].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_no_repeated_ngram(n: int) -> None:
    ids = torch.randint(0, 3, (8, 12))  # three tokens: repeats abound
    for length in range(1, 13):
        logits = some_logits(8)
        got = sampling.forbid_repeated_ngrams(logits, ids[:, :length], n)
        expected = processor_of("NoRepeatNGramLogitsProcessor", n)(ids[:, :length], logits)
        torch.testing.assert_close(got, expected)


def test_logit_bias() -> None:
    bias = {3: 2.5, 7: -100.0}
    logits = some_logits()
    got = Sampler(SamplingSettings(logit_bias=bias), V, CPU).adjust(logits, TokenBuffer(torch.tensor([[1]] * 4), 0))
    processor = processor_of("SequenceBiasLogitsProcessor", {(token,): value for token, value in bias.items()})
    torch.testing.assert_close(got, processor(torch.tensor([[1]] * 4), logits))


def test_all_filters_in_the_order_of_transformers() -> None:
    from transformers.generation import LogitsProcessorList

    logits, ids = some_logits(), torch.randint(0, V, (4, 20))
    settings = SamplingSettings(
        temperature=1.4, top_k=30, top_p=0.9, min_p=0.01, typical_p=0.8, repetition_penalty=1.2, no_repeat_ngram=2
    )
    got = Sampler(settings, V, CPU).distribution(logits, TokenBuffer(ids, 0))
    processors = LogitsProcessorList(
        [
            processor_of("RepetitionPenaltyLogitsProcessor", 1.2),
            processor_of("NoRepeatNGramLogitsProcessor", 2),
            processor_of("TemperatureLogitsWarper", 1.4),
            processor_of("TopKLogitsWarper", 30),
            processor_of("TopPLogitsWarper", 0.9),
            processor_of("MinPLogitsWarper", 0.01),
            processor_of("TypicalLogitsWarper", 0.8),
        ]
    )
    torch.testing.assert_close(got, processors(ids, logits).softmax(-1))


@given(st.data())
def test_padding_is_ignored(data: st.DataObject) -> None:
    length, padding = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 5))
    row = torch.tensor([data.draw(st.lists(st.integers(0, 3), min_size=length, max_size=length))])
    n, logits = data.draw(st.integers(1, 3)), torch.randn(1, V)
    settings = SamplingSettings(repetition_penalty=1.5, no_repeat_ngram=n, frequency_penalty=0.2)
    sampler = Sampler(settings, V, CPU)
    padded = torch.cat([torch.zeros(1, padding, dtype=torch.long), row], dim=1)
    plain = sampler.adjust(logits, TokenBuffer(row, 0))
    torch.testing.assert_close(sampler.adjust(logits, TokenBuffer(padded, 0, torch.tensor([padding]))), plain)


def test_frequency_penalty_ignores_the_prompt() -> None:
    text = TokenBuffer(torch.tensor([[1, 1, 2]]), 2)
    text.append(torch.tensor([[2, 5]]))
    got = Sampler(SamplingSettings(frequency_penalty=1.0), V, CPU).adjust(torch.zeros(1, V), text)
    assert got[0, :6].tolist() == [0, 0, -1, 0, 0, -1]


def test_a_row_without_allowed_tokens_is_not_filtered() -> None:
    everything = torch.arange(V)[None]
    adjusted = Sampler(SamplingSettings(no_repeat_ngram=1), V, CPU).adjust(torch.ones(1, V), TokenBuffer(everything, 0))
    assert adjusted.eq(1).all()


def test_samples_follow_the_distribution_and_never_have_probability_zero() -> None:
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:-1]
    tokens = sampling.draw(probabilities.expand(len(uniform), -1), uniform)
    shares = tokens.bincount(minlength=6) / len(uniform)
    torch.testing.assert_close(shares, probabilities, atol=1e-4, rtol=0)
    assert shares[probabilities == 0].eq(0).all()
    nearly_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert sampling.draw(probabilities[None], nearly_one).item() == 4


def test_rows_are_sampled_independently() -> None:
    both, first = RowGenerators(5, range(2), 2, CPU), RowGenerators(5, range(1), 1, CPU)
    draws = torch.stack([both.uniform() for _ in range(600)])
    alone = torch.stack([first.uniform() for _ in range(600)])
    assert torch.equal(draws[:, :1], alone)
    correlation = torch.corrcoef(draws.T) - torch.eye(4)
    assert correlation.abs().max() < 0.2
    torch.testing.assert_close(draws.mean(), torch.tensor(0.5, dtype=torch.float64), atol=0.03, rtol=0)
