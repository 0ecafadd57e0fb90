"""Inputs of a model work, or one sentence names the remedy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modular_gpt import ConfigError, GPTConfig, GPTModel
from tests.components.cases import CHOSEN, MODEL, Case, parametrize
from tests.components.laws import build, close, text

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
V = MODEL["vocab_size"]


@pytest.fixture(scope="module")
def model() -> GPTModel:
    return build(GPTConfig(**MODEL))


REFUSED = [
    (("hello",), {}, "ids are token ids, got text: encode it with the model's tokenizer"),
    ((["hello"],), {}, "ids are token ids, got text"),
    ((IDS[0],), {}, "ids have the shape (batch, tokens), got (3,); give a batch of one, ids[None]"),
    (([1, 2, 3],), {}, "give a batch of one, ids[None]"),
    ((IDS[None],), {}, "ids have the shape (batch, tokens), got (1, 2, 3)"),
    (([[1, 2], [3]],), {}, "ids have different lengths"),
    ((IDS.float(),), {}, "ids are whole numbers, got torch.float32"),
    (([[0.5]],), {}, "ids are whole token ids"),
    ((IDS[:0],), {}, "ids hold no token: their shape is (0, 3)"),
    ((IDS[:, :0],), {}, "ids hold no token: their shape is (2, 0)"),
    ((IDS + V,), {}, f"but the model's ids run from 0 to {V - 1}"),
    ((-IDS,), {}, "ids contain -1, but the model's ids run from 0"),
    ((IDS, IDS[:, 1:]), {}, "targets have the shape of the ids, (2, 3), got (2, 2)"),
    ((IDS, IDS.float()), {}, "targets are whole numbers, got torch.float32"),
    ((IDS, IDS + V), {}, "targets contain 32, but the model's ids run from 0"),
    ((IDS, IDS - 5), {}, "targets contain -4, but the model's ids run from 0"),
    (
        (IDS,),
        dict(padding=torch.tensor([1])),
        "leading columns to ignore for each of 2 rows",
    ),
    ((IDS[:1],), dict(padding=torch.tensor([1, 1, 1])), "for each of 1 rows, got torch.int64 of shape (3,)"),
    ((IDS,), dict(padding=torch.tensor([-2, 0])), "padding must be from 0 to 2 for 3 tokens, got -2"),
    ((IDS,), dict(padding=torch.tensor([3, 0])), "padding must be from 0 to 2 for 3 tokens, got 3"),
    ((IDS,), dict(padding=torch.tensor([0.5, 0])), "got torch.float32 of shape (2,)"),
    ((IDS,), dict(padding="01"), "padding are token ids, got text"),
]


@pytest.mark.parametrize(("given", "keywords", "sentence"), REFUSED, ids=[sentence[:60] for *_, sentence in REFUSED])
def test_invalid_inputs_get_one_sentence(model: GPTModel, given: tuple, keywords: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        model(*given, **keywords)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@torch.no_grad()
def test_integers_of_any_type(model: GPTModel) -> None:
    expected = model(IDS)
    for same in (
        IDS.tolist(),
        IDS.numpy(),
        IDS.int(),
        IDS.to(torch.uint8),
        [list(row.numpy()) for row in IDS],
    ):
        assert torch.equal(model(same), expected)
    loss = model(IDS, IDS).loss
    for targets in (IDS.int(), IDS.tolist(), IDS.numpy(), IDS.to(torch.int16)):
        assert torch.equal(model(IDS, targets).loss, loss)
    assert torch.equal(model(IDS, padding=[1, 0]), model(IDS, padding=torch.tensor([1, 0], dtype=torch.int32)))


def test_text_for_generate(model: GPTModel) -> None:
    with pytest.raises(ConfigError, match="got text: encode it with the model's tokenizer"):
        model.generate("hello", 3)
    assert model.generate([[1, 2, 3]], np.int64(2), greedy=True).shape == (1, 5)


def test_logits_and_loss_as_in_nanogpt() -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    x, y = ids[:, :-1], ids[:, 1:]
    logits, loss = model(x, y)
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), y.flatten()))
    logits.sum().backward()  # in the same graph as the loss, with shared hidden states
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_logits_are_computed_lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    calls: list[int] = []
    head = model._local_logits
    monkeypatch.setattr(model, "_local_logits", lambda x: calls.append(x.ndim) or head(x))
    output = model(ids[:, :-1], ids[:, 1:])
    assert calls == [2]  # the chunked loss calls it once per chunk of rows
    first, _ = output
    assert calls == [2, 3] and output.logits is first
    assert output.parts is output.losses


def test_logits_outside_the_autocast_region() -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(ids, ids)
    assert output.logits.dtype == torch.float32


def test_a_compiled_forward_pass_returns_only_the_loss() -> None:
    model, ids = build(GPTConfig(**{**MODEL, "n_layers": 1})), text(GPTConfig(**MODEL))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    output = compiled(ids, ids)
    assert torch.equal(output.loss, model(ids, ids).loss)
    with pytest.raises(ConfigError, match=r"for logits call model\(ids\)"):
        output.logits  # noqa: B018


@parametrize([case for case in CHOSEN if case.slot == "attention"])
def test_a_kept_cache_works_inside_and_outside_inference_mode(case: Case) -> None:
    """The text exceeds the initial size of the growing cache, so that it grows inside inference mode."""
    config = GPTConfig.from_dict({**case.config().to_dict(), "context_length": 160})
    model = build(config)
    ids = torch.randint(0, config.vocab_size, (2, 90), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = model(ids)
    with torch.inference_mode():
        first = [model(chunk, use_cache=True) for chunk in ids[:, :70].split(35, dim=1)]
    rest = [model(ids[:, 70:], use_cache=True)]
    close(torch.cat([logits.clone() for logits in (*first, *rest)], dim=1), expected, 1e-4)
