"""Reported attention tensors explain the output of the attention, and reporting changes no result."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from modular_gpt import ConfigError, GPTConfig, GPTModel, capture
from modular_gpt.core.cache import StateCache, TokenCache
from modular_gpt.core.convolution_cache import ConvolutionCache
from modular_gpt.core.registry import entries
from modular_gpt.nn import flex as flex_module
from tests.components.cases import MODEL, Case, cases, parametrize
from tests.components.laws import TOKENS, build, text

PADDING = torch.tensor([0, 4, 9])
EXACT = 1e-6  # in float64
# The state of linear attention stays float32.
STATE = 1e-5
ATTENTIONS = cases("attention")


def models(case: Case) -> Iterator[GPTModel]:
    """The model of a case in float64; for default settings, one model per compatible position."""
    if case.settings:
        yield build(case.config(n_layers=2)).double()
        return
    for pos in entries("pos"):
        try:
            config = case.config(pos=pos, n_layers=2)
        except ConfigError:
            continue
        yield build(config).double()


def mixed(weights: Tensor, value: Tensor) -> Tensor:
    """weights @ value, (B, H, T, S) and (B, K, S, M), where H / K heads share a value."""
    return weights @ value.repeat_interleave(weights.shape[1] // value.shape[1], 1)


def check_heads(seen: dict[str, Tensor], layer: int, counted: Tensor | None = None, tolerance: float = EXACT) -> None:
    """The reported weights times values equal the reported output of the kernel at the counted tokens (B, T)."""
    value, weights, heads = (seen[f"blocks.{layer}.attention.{name}"] for name in ("value", "weights", "heads"))
    assert weights.shape == (*heads.shape[:3], value.shape[2])
    assert heads.shape[3] == value.shape[3]
    for name, shape in (("query", weights.shape[:3]), ("scores", weights.shape), ("key", value.shape[:3])):
        found = seen.get(f"blocks.{layer}.attention.{name}")
        assert found is None or found.shape[: len(shape)] == shape
    error = (mixed(weights, value) - heads).abs().amax((1, 3))
    worst = error.max() if counted is None else error[counted].max()
    assert worst <= tolerance * heads.abs().max()


@pytest.mark.parametrize("name", entries("attention"))
def test_every_attention_reports_its_declared_tensors(name: str) -> None:
    model = build(Case("attention", name).config(n_layers=1))
    with torch.no_grad(), capture(model, "*.attention.*") as seen:
        model(text(model.config))
    found = [full.rpartition(".")[2] for full in seen]
    assert found == [*model.blocks[0].attention.reported, "out"]
    assert {"value", "weights", "heads"} <= set(found)
    for other in {"query", "key", "scores"} - set(found):
        refusal = rf"matches '\*\.{other}'; this model reports blocks"
        with torch.no_grad(), pytest.raises(ConfigError, match=refusal), capture(model, f"*.{other}"):
            model(text(model.config))


@parametrize(ATTENTIONS)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole rows", "padded rows"])
@torch.no_grad()
def test_weights_times_values_equal_the_output_of_the_kernel(case: Case, padding: Tensor | None) -> None:
    for model in models(case):
        ids = text(model.config)
        plain = model(ids, padding=padding)
        with capture(model) as seen:
            observed = model(ids, padding=padding)
        assert torch.equal(plain, observed)
        counted = None if padding is None else torch.arange(ids.shape[1]) >= padding[:, None]
        for layer in range(len(model.blocks)):
            check_heads(seen, layer, counted)


@parametrize(ATTENTIONS)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["whole rows", "padded rows"])
@torch.no_grad()
def test_a_cached_step_reports_the_row_of_the_full_pass(case: Case, padding: Tensor | None) -> None:
    for model in models(case):
        ids = text(model.config)
        if case.settings.get("backend") == "flash" and not decodes(model, ids):
            continue
        with capture(model, "*.weights", "*.heads") as full:
            model(ids, padding=padding)
        cache, other, start = model.new_cache(3, ids.shape[1]), model.new_cache(3, ids.shape[1]), 0
        for count in (11, 1, 4, 1, 3):  # the first chunk covers all padding
            chunk, first = ids[:, start : start + count], padding if start == 0 else None
            plain = model(chunk, cache=other, padding=first)
            with capture(model) as seen:
                observed = model(chunk, cache=cache, padding=first)
            assert torch.equal(plain, observed)
            if start:
                check_step(seen, full, start, cache.layers[1])
            start += count


def decodes(model: GPTModel, ids: Tensor) -> bool:
    """Whether there is a flash kernel for single steps; there is none if keys are wider than values."""
    try:
        return model(ids[:, :1], cache=model.new_cache(len(ids))) is not None
    except ConfigError:
        return False


def check_step(seen: dict[str, Tensor], full: dict[str, Tensor], start: int, layer: object) -> None:
    layer = layer.inner if isinstance(layer, ConvolutionCache) else layer
    count = seen["blocks.1.residual"].shape[1]
    tolerance = STATE if isinstance(layer, StateCache) else EXACT
    expected = full["blocks.1.attention.heads"][:, :, start : start + count]
    torch.testing.assert_close(seen["blocks.1.attention.heads"], expected, atol=tolerance, rtol=tolerance)
    weights = full["blocks.1.attention.weights"][:, :, start : start + count]
    if isinstance(layer, TokenCache):  # a ring buffer has the same keys in another order
        check_heads(seen, 1)
        found = seen["blocks.1.attention.weights"]
        kept = min(found.shape[-1], weights.shape[-1])
        found, weights = (x.sort(-1, descending=True).values[..., :kept] for x in (found, weights))
    else:  # a state has no columns for earlier tokens
        found, weights = seen["blocks.1.attention.weights"], weights[..., start : start + count]
    torch.testing.assert_close(found, weights, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("padding", [None, torch.tensor([0, 300])], ids=["whole rows", "padded rows"])
@pytest.mark.parametrize("backend", ["auto", "math"])
@torch.no_grad()
def test_long_texts_report_the_weights_of_their_blocks(backend: str, padding: Tensor | None) -> None:
    """One report covers sliding windows in blocks, text moved before padding, and chunks of queries."""
    attention = {"name": "gqa", "window": 40, "backend": backend}
    config = GPTConfig(vocab_size=31, d_model=32, n_heads=2, n_layers=1, context_length=600, attention=attention)
    model, ids = build(config).double(), text(config, rows=2, tokens=520)
    plain = model(ids, padding=padding)
    with capture(model) as seen:
        observed = model(ids, padding=padding)
    assert torch.equal(plain, observed)
    check_heads(seen, 0, None if padding is None else torch.arange(ids.shape[1]) >= padding[:, None])


@pytest.mark.parametrize("name", entries("attention"))
@torch.no_grad()
def test_packed_documents_have_separate_weights(name: str) -> None:
    model = build(Case("attention", name).config()).double()
    ids, documents = text(model.config), torch.arange(TOKENS).div(7, rounding_mode="floor").expand(3, -1)
    with capture(model) as seen:
        hidden, _ = model.hidden_states(ids, documents=documents)
    assert torch.equal(hidden, model.hidden_states(ids, documents=documents)[0])
    other = documents[0, :, None] != documents[0]
    for layer in range(len(model.blocks)):
        check_heads(seen, layer)
        assert (seen[f"blocks.{layer}.attention.weights"][..., other] == 0).all()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@torch.no_grad()
def test_flex_attention_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs uncompiled, since compilation takes seconds."""
    monkeypatch.setattr(flex_module, "_compiled", lambda: flex_attention)
    attention = {"name": "mha", "window": 100, "sinks": True, "softcap": 3.0, "backend": "flex"}
    model = build(GPTConfig(**{**MODEL, "pos": "alibi", "attention": attention})).double()
    ids, padding = text(model.config, tokens=24), torch.tensor([0, 3, 9])
    with capture(model) as seen:
        observed = model(ids, padding=padding)
    assert torch.equal(observed, model(ids, padding=padding))
    check_heads(seen, 0, torch.arange(24) >= padding[:, None])


@torch.no_grad()
def test_latent_attention_reports_full_heads() -> None:
    attention = {"name": "mla", "kv_lora_rank": 12, "qk_nope_head_dim": 6, "v_head_dim": 10, "qk_rope_head_dim": 4}
    model = build(GPTConfig(vocab_size=31, d_model=32, n_heads=4, n_layers=1, context_length=64, attention=attention))
    model.double()
    ids = text(model.config, tokens=40)
    cache = model.new_cache(3)
    model(ids[:, :-1], cache=cache)
    assert model.blocks[0].attention._absorbing_is_cheaper(1, 40)
    with capture(model) as seen:
        model(ids[:, -1:], cache=cache)
    widths = {name: tuple(seen[f"blocks.0.attention.{name}"].shape[1:]) for name in ("query", "key", "value", "heads")}
    assert widths == {"query": (4, 1, 10), "key": (4, 40, 10), "value": (4, 40, 10), "heads": (4, 1, 10)}
    check_heads(seen, 0)


@pytest.mark.parametrize("case", [Case("attention", name) for name in entries("attention")], ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["query", "key", "value", "scores", "weights", "heads", "out"])
@pytest.mark.parametrize("cached", [False, True], ids=["whole pass", "cached step"])
@torch.no_grad()
def test_an_edit_of_any_tensor_changes_the_logits_and_no_edit_does_not(case: Case, name: str, cached: bool) -> None:
    model = build(case.config(n_layers=1)).double()
    ids = text(model.config)
    if name not in (*model.blocks[0].attention.reported, "out"):
        pytest.skip(f"attention={case.name} does not report {name}")

    def logits(change: float) -> Tensor:
        def edit(value: Tensor) -> Tensor:
            return value * (1.0 + change * torch.arange(1.0, 1 + value.shape[-1]).sin())

        cache = model.new_cache(3) if cached else None
        if cached:
            model(ids[:, :-1], cache=cache)
        with capture(model, edit={f"*.attention.{name}": edit}):
            return model(ids[:, -1:] if cached else ids, cache=cache)[:, -1]

    plain = model(ids)[:, -1]
    torch.testing.assert_close(logits(0.0), plain, atol=STATE, rtol=STATE)
    assert (logits(1.0) - plain).abs().max() > 1e-3
