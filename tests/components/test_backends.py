"""All attention backends agree; compiling a flex kernel takes seconds."""

import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from modular_gpt import ConfigError, GPTConfig
from modular_gpt.nn import flex as flex_module
from tests.components.cases import MODEL
from tests.components.laws import build, close, compiles_whole, feed, text

SETTINGS = {"name": "mha", "n_kv_heads": 2, "window": 7, "softcap": 3.0, "sinks": True}


def model_with(backend: str, **settings: object):
    return build(GPTConfig(**{**MODEL, "pos": "alibi", "attention": {**settings, "backend": backend}}))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@torch.no_grad()
def test_flex_equals_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """One compiled kernel has window, softcap, sinks, bias, groups and padding.

    Other shapes pass the same mask and score functions to eager FlexAttention.
    """
    flex, plain = model_with("flex", **SETTINGS), model_with("math", **SETTINGS)
    ids = text(plain.config)
    expected = plain(ids)
    padding = torch.tensor([0, 3, 9])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(flex(ids, padding=padding), plain(ids, padding=padding))
        monkeypatch.setattr(flex_module, "_compiled", lambda: flex_attention)
        close(flex(ids), expected)
        close(flex(ids, padding=padding), plain(ids, padding=padding))
        close(feed(flex, ids, flex.new_cache(3, 20), [9, 1]), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@torch.no_grad()
def test_flex_skips_masked_blocks() -> None:
    """Three blocks of 128 and a window that reaches into one earlier block; the sink's key is in the last block."""
    settings = {"name": "mha", "window": 100, "sinks": True}
    flex, plain = model_with("flex", **settings), model_with("math", **settings)
    ids = text(plain.config, rows=1, tokens=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(flex(ids), plain(ids))


def test_flex_refuses_unsupported_settings() -> None:
    model = model_with("flex", **SETTINGS)
    with pytest.raises(ConfigError, match="backend=flex does not train on a CPU; use backend=auto"):
        model(text(model.config))
    model = model_with("flex", **SETTINGS, dropout=0.1).train()
    with pytest.raises(ConfigError, match=r"set attention\.dropout=0 or backend=auto"):
        model(text(model.config))


def test_flash_refuses_unsupported_settings() -> None:
    """On a CPU the flash kernel has no dropout."""
    settings = {"name": "mla", "v_head_dim": 6, "backend": "flash", "dropout": 0.1}
    model = build(GPTConfig(**{**MODEL, "attention": settings}))
    model(text(model.config))
    with warnings.catch_warnings(), pytest.raises(ConfigError, match="use backend=auto"):
        warnings.simplefilter("ignore")
        model.train()(text(model.config))


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_inductor_equals_eager() -> None:
    """The default backend of torch.compile, on one block."""
    attention = {"name": "swa", "window": 7, "n_kv_heads": 2, "qk_norm": "rmsnorm"}
    compiles_whole(GPTConfig(**{**MODEL, "n_layers": 1, "attention": attention, "ffn": "swiglu"}), backend="inductor")


def test_flex_is_compiled_for_many_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default PyTorch stops after 8 recompilations and runs FlexAttention unfused, with only a warning."""
    limits = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *a, **k: limits.append(torch._dynamo.config.recompile_limit)
    )
    flex_module._compiled.cache_clear()
    try:
        flex_module._compiled()(*torch.zeros(3, 1, 1, 1, 1))
    finally:
        flex_module._compiled.cache_clear()
    assert limits == [256] and torch._dynamo.config.recompile_limit < 256


def test_gradients_of_multi_query_attention_for_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernel gets the head of keys once for each head of queries, where it would use one thread."""
    heads: list[int] = []

    def recorded(q: torch.Tensor, k: torch.Tensor, *arguments: object, **settings: object) -> torch.Tensor:
        heads.append(k.shape[1])
        return kernel(q, k, *arguments, **settings)

    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", recorded)
    attention = {"name": "mqa", "backend": "auto"}
    auto = build(GPTConfig(**{**MODEL, "attention": attention}))
    math = build(GPTConfig(**{**MODEL, "attention": {**attention, "backend": "math"}}))
    ids = text(auto.config, rows=1)
    for model in (auto, math):
        model(ids, ids).loss.backward()
    assert heads == [MODEL["n_heads"]] * MODEL["n_layers"]
    for one, other in zip(auto.parameters(), math.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
