"""The generation loop: text equals that without a cache, does not depend on the batch, and is reproducible."""

import pytest
import torch
from torch import Tensor

from modular_gpt import ConfigError, GPTModel
from modular_gpt.generation import Generation, GenerationConfig, complete, generate, left_pad
from tests.generation.models import PAIRS, naive_greedy, prompts, tiny


@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_greedy_text_equals_that_without_a_cache(attention: str, pos: str) -> None:
    model, ids = tiny(attention, pos), prompts()
    expected = naive_greedy(model, ids, 20)
    assert expected[:, 6:].unique().numel() > 2, "the model says too little to tell"
    assert torch.equal(generate(model, ids, 20, greedy=True), expected)


@pytest.mark.parametrize(("attention", "pos"), PAIRS)
def test_prompts_of_different_lengths_continue_like_single_prompts(attention: str, pos: str) -> None:
    model, lengths = tiny(attention, pos), (1, 9, 4)
    texts = [prompts(1, n)[0].tolist() for n in lengths]
    ids, padding = left_pad(texts)
    together = generate(model, ids, 15, padding=padding, seed=3)[:, ids.shape[1] :]
    assert torch.equal(generate(model, torch.tensor(texts[:1]), 15, seed=3)[:, 1:], together[:1])
    greedy = generate(model, ids, 15, padding=padding, greedy=True)[:, ids.shape[1] :]
    for row, text in zip(greedy, texts, strict=True):
        assert torch.equal(row, naive_greedy(model, torch.tensor([text]), 15)[0, len(text) :])


@pytest.mark.parametrize("strategy", ["sample", "lookup"])
def test_a_seed_reproduces_in_any_batch_and_global_state(strategy: str) -> None:
    model, ids = tiny(), prompts(3)
    first = generate(model, ids, 20, seed=7, strategy=strategy)
    torch.manual_seed(99)
    assert torch.equal(generate(model, ids, 20, seed=7, strategy=strategy), first)
    assert not torch.equal(generate(model, ids, 20, seed=8, strategy=strategy), first)
    if strategy == "sample":
        assert torch.equal(generate(model, ids[:1], 20, seed=7), first[:1])
        samples = generate(model, ids, 20, seed=7, num_return_sequences=2)
        assert torch.equal(samples[::2], first)
        assert not torch.equal(samples[1::2], first)


def test_the_global_generator_is_used_without_a_seed_only() -> None:
    model, ids = tiny(), prompts()
    torch.manual_seed(4)
    first, second = generate(model, ids, 20), generate(model, ids, 20)
    torch.manual_seed(4)
    assert torch.equal(generate(model, ids, 20), first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    generate(model, ids, 5, seed=1)
    generate(model, ids, 5, greedy=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_rows_of_equal_prompts_differ() -> None:
    rows = generate(tiny(), prompts(1).repeat(4, 1), 20, seed=0).tolist()
    assert len({tuple(row) for row in rows}) == 4


class Counted:
    """A model that records the shapes of its inputs."""

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.shapes: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)

    def __call__(self, ids: Tensor, **keywords: object) -> Tensor:
        self.shapes.append(tuple(ids.shape))
        return self.model(ids, **keywords)


def test_a_prompt_is_read_once_for_all_samples() -> None:
    model = Counted(tiny())
    generate(model, prompts(2, 10), 4, num_return_sequences=3, seed=0)  # type: ignore[arg-type]
    assert model.shapes == [(2, 9), (6, 1), (6, 1), (6, 1), (6, 1)]


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    model = Counted(tiny(context_length=8))
    generate(model, prompts(1, 30), 3, greedy=True)  # type: ignore[arg-type]
    assert model.shapes == [(1, 8), (1, 8), (1, 8), (1, 6), (1, 1), (1, 1)]


def test_stop_tokens_end_rows_independently() -> None:
    model, ids = tiny(), prompts(4)
    free = generate(model, ids, 30, seed=2)[:, 6:].tolist()
    stop = [3, 5]
    places = [next((i for i, token in enumerate(row) if token in stop), None) for row in free]
    assert len(set(places)) > 1
    run = Generation(model, ids, GenerationConfig(max_new_tokens=30, seed=2, stop_tokens=stop))
    for [text], row, place in zip(run.finish(), free, places, strict=True):
        assert text.ids == (row if place is None else row[: place + 1])
        assert text.reason == ("length" if place is None else "token")
    filled = generate(model, ids, 30, seed=2, stop_tokens=stop)[:, 6:].tolist()
    longest = max(30 if place is None else place + 1 for place in places)
    for row, expected, place in zip(filled, free, places, strict=True):
        end = longest if place is None else place + 1
        assert row == expected[:end] + [expected[end - 1]] * (longest - end)


def test_the_run_ends_with_its_last_row() -> None:
    run = Generation(tiny(), prompts(2), GenerationConfig(max_new_tokens=500, stop_tokens=list(range(1, 13)), seed=0))
    assert sum(1 for _ in run) < 40


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("strategy", ["sample", "beam", "lookup"])
def test_no_new_tokens(strategy: str, samples: int) -> None:
    settings = GenerationConfig(max_new_tokens=0, strategy=strategy, num_return_sequences=samples)
    texts = complete(tiny(), [[1, 2], [3]], settings)
    assert all(text.ids == [] and text.reason == "length" for row in texts for text in row)
    assert generate(tiny(), prompts(), 0).shape == (2, 6)


@pytest.mark.parametrize("strategy", ["sample", "contrastive", "lookup", "beam"])
def test_log_probabilities_are_those_of_the_unmodified_logits(strategy: str) -> None:
    model = tiny()
    extra = {} if strategy in ("beam", "contrastive") else {"temperature": 2.0, "top_k": 5, "seed": 1}
    settings = GenerationConfig(max_new_tokens=12, logprobs=True, strategy=strategy, **extra)
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    for prompt, [text] in zip(texts, complete(model, texts, settings), strict=True):
        whole = torch.tensor([prompt + text.ids])
        scores = model(whole).log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = scores.gather(1, torch.tensor(text.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(text.logprobs), expected.detach(), atol=1e-4, rtol=0)


def test_dropout_is_off_while_generating_and_restored() -> None:
    model = tiny(dropout=0.5).train()
    first = generate(model, prompts(), 10, greedy=True)
    assert model.training
    assert torch.equal(first, naive_greedy(model.eval(), prompts(), 10))
    steps = iter(Generation(model.train(), prompts(), GenerationConfig(greedy=True)))
    next(steps)
    assert not model.training
    steps.close()  # type: ignore[attr-defined]
    assert model.training


def test_a_loop_may_be_left_and_finished_later() -> None:
    model, ids = tiny(), prompts()
    whole = generate(model, ids, 20, seed=1)[:, 6:].tolist()
    run = Generation(model, ids, GenerationConfig(max_new_tokens=20, seed=1, logprobs=True))
    for index, _ in enumerate(run):
        if index == 4:
            break
    texts = run.finish()
    assert [text.ids for [text] in texts] == whole
    assert all(len(text.logprobs or ()) == 20 for [text] in texts)


def test_no_gradients_and_no_change_of_the_gradient_mode_of_the_caller() -> None:
    steps = iter(Generation(tiny(), prompts(), GenerationConfig(seed=0)))
    assert not next(steps).tokens.requires_grad
    assert torch.is_grad_enabled(), "between steps the caller's mode holds"


def test_cache_bytes_are_those_of_the_cached_tokens() -> None:
    model = tiny("swa")
    run = Generation(model, prompts(2), GenerationConfig(max_new_tokens=10, num_return_sequences=3, seed=0))
    run.finish()
    assert run.cache_bytes() == model.config.cache_bytes(6, 15)


def test_a_batch_of_prompts_must_match_the_rows() -> None:
    with pytest.raises(ConfigError, match="empty"):
        complete(tiny(), [[1], []], GenerationConfig())
    [[alone]] = complete(tiny(), [[]], GenerationConfig(greedy=True), start_token=5)
    [[given]] = complete(tiny(), [[5]], GenerationConfig(greedy=True))
    assert alone.ids == given.ids
