"""Every token except the first counts once, with the documented context; losses equal a token-by-token reference."""

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from transformers import GPT2Config, GPT2LMHeadModel

from modular_gpt import ConfigError, DataError, GPTConfig, GPTModel
from modular_gpt.core.errors import NonFiniteError
from modular_gpt.data import build_tokenizer
from modular_gpt.data.tokenizers.byte import ByteTokenizer
from modular_gpt.evaluation import evaluate_text, evaluate_tokens, log_probabilities, sliding_windows
from modular_gpt.pretrained import load_pretrained

CONTEXT = 8
TEXT = "It is a truth universally acknowledged, that a naïve twin counts each token once."


def small(**changes: Any) -> GPTModel:
    torch.manual_seed(0)
    plain: dict[str, Any] = dict(vocab_size=256, d_model=32, n_heads=4, n_layers=2, context_length=CONTEXT, pos="rope")
    return GPTModel(GPTConfig(**{**plain, "init_std": 0.3, **changes})).eval()


@settings(max_examples=200)
@given(st.integers(2, 60), st.integers(1, 12), st.data())
def test_every_token_counts_once(count: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    counted: list[int] = []
    for window in sliding_windows(count, context, stride):
        assert 0 < window.end - window.start <= context and window.scored > 0
        new = range(window.end - window.scored + 1, window.end + 1)
        for token in new:
            seen = token - window.start
            assert seen == token or seen >= context - stride + 1
        counted += new
    assert counted == list(range(1, count))


def twin(model: GPTModel, ids: list[int], context: int, stride: int) -> float:
    """Reference: mean loss with one forward pass per token; the context of a token follows from its index."""
    losses = []
    for token in range(1, len(ids)):
        late = max(0, math.ceil((token - context) / stride))  # number of windows that end before this token
        logits = model(torch.tensor([ids[late * stride : token]]))[0, -1]
        losses.append(-logits.double().log_softmax(-1)[ids[token]].item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("stride", [1, 3, CONTEXT])
@pytest.mark.parametrize("length", [2, CONTEXT, CONTEXT + 1, len(TEXT.encode())])
@torch.no_grad()
def test_the_loss_equals_a_naive_twin(stride: int, length: int) -> None:
    model, tokenizer = small(), build_tokenizer("byte")
    text = TEXT.encode()[:length].decode(errors="ignore")
    found = evaluate_text(model, tokenizer, text, stride=stride, batch_size=3)
    assert found.loss == pytest.approx(twin(model, tokenizer.encode(text), CONTEXT, stride), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))  # a token is a byte
    assert (found.scored, found.tokens, found.bytes) == (length - 1, length, length)


def test_bits_per_byte_do_not_depend_on_the_tokenizer() -> None:
    """A uniform model needs log2(V) bits per token, for any tokens."""
    model = small(init_std=1e-9)
    found = evaluate_tokens(model, np.arange(20), size=50)
    assert found.bits_per_byte == pytest.approx(math.log2(256) * 20 / 50, rel=1e-4)


def test_the_loss_equals_the_published_strided_loop(tmp_path: Any) -> None:
    """transformers' GPT-2 and its loss over masked labels, as https://huggingface.co/docs/transformers/perplexity."""
    config = GPT2Config(vocab_size=256, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, initializer_range=0.3)
    reference = GPT2LMHeadModel(config).eval()
    reference.save_pretrained(tmp_path)
    ids, stride, total, before = torch.randint(0, 256, (1, 50)), 3, 0.0, 1
    for begin in range(0, 50, stride):  # windows of the targets here, windows of the inputs in the package
        end = min(begin + CONTEXT, 50)
        labels = ids[:, begin:end].clone()
        labels[:, : max(before - begin, 1)] = -100
        with torch.no_grad():
            total += reference(ids[:, begin:end], labels=labels).loss.item() * (end - before)
        before = end
        if end == 50:
            break
    found = evaluate_tokens(load_pretrained(tmp_path), ids[0].numpy(), 50, context=CONTEXT - 1, stride=stride)
    assert found.loss == pytest.approx(total / 49, rel=1e-5)


def test_more_context_is_used() -> None:
    """Tokens before the window do not change a prediction."""
    model, ids = small(), torch.randint(0, 256, (1, CONTEXT + 1))
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 256
    one, other = (log_probabilities(model, tokens, CONTEXT) for tokens in (ids, changed))
    assert not torch.allclose(one[:, -1], other[:, -1])
    torch.testing.assert_close(log_probabilities(model, ids, 3), one[:, -3:])


def test_training_mode_is_restored() -> None:
    model = small(dropout=0.5).train()
    first = evaluate_tokens(model, np.arange(20), 20)
    assert model.training and first == evaluate_tokens(model, np.arange(20), 20)


@pytest.mark.parametrize(
    ("ids", "more", "error", "sentence"),
    [
        ([1], {}, DataError, "has 1 tokens"),
        ([1, 256], {}, DataError, "has token 256"),
        ([1, 2], {"stride": 9}, ConfigError, "stride must be from 1 to the context of 8"),
        ([1, 2], {"stride": 0}, ConfigError, "stride must be"),
        ([1, 2], {"context": 0, "stride": 1}, ConfigError, "context must be at least 1"),
        ([1, 2], {"batch_size": 0}, ConfigError, "batch_size must be at least 1"),
        (list(range(20)), {"context": 12}, ConfigError, "do not fit pos=learned"),
    ],
)
def test_invalid_calls_are_refused(ids: list[int], more: dict[str, Any], error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        evaluate_tokens(small(pos="learned"), ids, 10, **more)


class WithBos(ByteTokenizer):
    """Bytes and a beginning-of-text id, as in Llama's and Gemma's tokenizers."""

    bos_id = 1


@pytest.mark.parametrize("stride", [3, CONTEXT])
@torch.no_grad()
def test_a_text_starts_with_one_bos(stride: int) -> None:
    model, ids = small(), list(TEXT.encode())
    found = evaluate_text(model, WithBos(), TEXT, stride=stride, batch_size=3)
    assert found.loss == pytest.approx(twin(model, [1, *ids], CONTEXT, stride), rel=1e-5)
    assert (found.scored, found.tokens, found.bytes) == (len(ids), len(ids), len(ids))
    assert evaluate_tokens(model, [7], 1, bos_id=1).scored == 1


def test_progress_counts_every_token() -> None:
    seen: list[tuple[int, int]] = []
    evaluate_tokens(small(), np.arange(50), 50, stride=3, batch_size=2, progress=lambda *counts: seen.append(counts))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (49, 49) and len(seen) > 5


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_logits_are_named(value: float) -> None:
    model = small()
    with torch.no_grad():
        model.blocks[-1].ffn.down.weight[0, 0] = value
    with pytest.raises(NonFiniteError) as caught:
        evaluate_tokens(model, np.arange(20), 20)
    assert str(caught.value) == (
        "the model's logits are not finite at token 0: its weights are damaged, its training diverged, or the logits"
        " overflow in this dtype; use another checkpoint, or dtype=float32"
    )
