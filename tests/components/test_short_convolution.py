"""The short convolution before attention: equal to PyTorch's, its cache, and transfer of its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modular_gpt import CheckpointError, ConfigError, GPTConfig, GPTModel
from modular_gpt.core.contracts import Attention, AttentionConfig
from modular_gpt.core.convolution_cache import ConvolutionCache
from modular_gpt.core.positions import Positions
from modular_gpt.core.registry import entries
from modular_gpt.core.short_convolution import ShortConvolution
from modular_gpt.generation import generate
from modular_gpt.optim import build_optimizer
from modular_gpt.optim.muon import OrthogonalMomentum
from modular_gpt.pretrained import transplant, with_components
from tests.components.cases import MODEL
from tests.components.laws import build, close, feed, text
from tests.generation.models import ATTENTIONS, naive_greedy, prompts, tiny

WIDTH = 3


def config(attention: str = "mha", conv: int | None = WIDTH, **changes: Any) -> GPTConfig:
    return GPTConfig(**{**MODEL, **changes, "attention": {"name": attention, "conv": conv}})


@pytest.mark.parametrize("width", [2, 3, 7])
def test_it_equals_the_convolution_of_pytorch_plus_a_residual(width: int) -> None:
    convolution, reference = ShortConvolution(8, width), nn.Conv1d(8, 8, width, groups=8, padding=width - 1, bias=False)
    reference.load_state_dict({"weight": convolution.weight[:, None]})
    x = torch.randn(2, 11, 8)
    expected = x + reference(x.mT)[..., :11].mT
    torch.testing.assert_close(convolution(x, Positions(0, 11, None, x.device)), expected)


def test_every_attention_supports_it_and_it_is_off_by_default() -> None:
    for entry in entries("attention").values():
        if entry.component.__module__.startswith("modular_gpt."):
            assert issubclass(entry.component.Config, AttentionConfig), entry.name
            assert entry.default().conv is None  # type: ignore[attr-defined]


def test_without_it_nothing_is_added() -> None:
    model = GPTModel(config(conv=None))
    assert not any("conv" in name for name in model.state_dict())
    with_it = GPTModel(config())
    assert set(with_it.state_dict()) - set(model.state_dict()) == {
        f"blocks.{layer}.attention.input_conv.weight" for layer in range(MODEL["n_layers"])
    }


def test_an_attention_without_settings_has_it_too() -> None:
    class Plain(Attention, name="plain-for-this-test"):
        """No settings."""

    try:
        assert issubclass(Plain.Config, AttentionConfig)
    finally:
        from modular_gpt.core.registry import _entries

        del _entries["attention"]["plain-for-this-test"]


@pytest.mark.parametrize("conv", [-1, 0, 1, 65])
def test_other_widths_are_refused(conv: int) -> None:
    with pytest.raises(ConfigError, match=f"attention.conv must be from 2 to 64 tokens, got {conv}"):
        config(conv=conv)


@pytest.mark.parametrize("attention", ["mha", "mla", "linear"])
def test_the_cache_keeps_two_inputs_more(attention: str) -> None:
    without, with_it = config(attention, conv=None), config(attention)
    for dtype in (torch.float32, torch.bfloat16):
        more = with_it.cache_bytes(2, 9, dtype) - without.cache_bytes(2, 9, dtype)
        assert more == 2 * MODEL["n_layers"] * (WIDTH - 1) * MODEL["d_model"] * dtype.itemsize


@pytest.mark.parametrize("strategy", ["lookup", "speculative"])
@pytest.mark.parametrize("attention", ["mha", "swa", "linear"])
@torch.no_grad()
def test_drafts_are_undone(attention: str, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**ATTENTIONS[attention], "conv": WIDTH}
    model, ids = tiny(settings), prompts(2)
    draft = {"draft": tiny(settings, seed=4)} if strategy == "speculative" else {}
    expected = naive_greedy(model, ids, 20)
    assert torch.equal(generate(model, ids, 20, greedy=True, strategy=strategy, **draft), expected)
    monkeypatch.setattr(ConvolutionCache, "restore", lambda *arguments: None)
    undone = generate(model, ids, 20, greedy=True, strategy=strategy, **draft)
    assert not torch.equal(undone, expected)


def test_truncation_without_a_saved_state_is_refused() -> None:
    model = build(config())
    cache = model.new_cache(1, 8)
    model(text(config(), 1, 5), cache=cache)
    with pytest.raises(ConfigError, match="this cache cannot go back"):
        cache.truncate(3)


@torch.no_grad()
def test_a_cache_of_another_dtype_and_a_reset_one() -> None:
    model, ids = build(config()), text(config())
    cache = model.new_cache(len(ids), dtype=torch.float64)
    for _ in range(2):
        close(feed(model, ids, cache, [3, 1, 1, 7]), model(ids))
        cache.reset()


@pytest.mark.parametrize("attention", ["mha", "gqa", "mla", "linear"])
@torch.no_grad()
def test_added_to_a_trained_model_it_starts_as_the_identity(attention: str) -> None:
    source, ids = build(config("gqa", conv=None)), text(config())
    without, _ = transplant(source, with_components(source.config, {"attention": attention}))
    model, report = transplant(source, with_components(source.config, {"attention": {"name": attention, "conv": 3}}))
    for one, other in zip(without.blocks, model.blocks, strict=True):
        other.attention.load_state_dict(
            one.attention.state_dict(), strict=False
        )  # a latent projection has random weights
    assert torch.equal(model(ids), without(ids))
    assert "zeros, as there was none" in str(report)


@torch.no_grad()
def test_its_weights_transfer_to_a_longer_kernel_and_to_another_attention() -> None:
    source, ids = build(config("gqa")), text(config())
    longer, report = transplant(source, with_components(source.config, {"attention": {"conv": 5}}))
    close(longer(ids), source(ids), 1e-6)
    assert "the last 3 taps" in str(report)
    linear, _ = transplant(source, with_components(source.config, {"attention": {"name": "linear", "conv": 3}}))
    for one, other in zip(source.blocks, linear.blocks, strict=True):
        assert one.attention.input_conv is not None and other.attention.input_conv is not None
        assert torch.equal(one.attention.input_conv.weight, other.attention.input_conv.weight)
    _, report = transplant(source, with_components(source.config, {"attention": {"conv": None}}))
    assert {row.name for row in report.rows if row.status == "skipped"} == {
        f"blocks.{layer}.attention.input_conv.weight" for layer in range(MODEL["n_layers"])
    }


def test_its_weight_is_not_a_matrix() -> None:
    model = GPTModel(config())
    optimizer = build_optimizer({"name": "muon", "weight_decay": 0.3}, model)
    taps = [name for name, _ in model.named_parameters() if "conv" in name]
    decays = {optimizer.names[p]: group["weight_decay"] for group in optimizer.groups() for p in group["params"]}
    assert {decays[name] for name in taps} == {0.0}
    (muon,) = (one for one in optimizer.optimizers if isinstance(one, OrthogonalMomentum))
    assert not {optimizer.names[p] for group in muon.param_groups for p in group["params"]} & set(taps)


@torch.no_grad()
def test_it_is_saved_in_the_package_format_only(tmp_path: Path) -> None:
    model, ids = build(GPTConfig(**{**MODEL, "ffn": "swiglu", "norm": "rmsnorm", "bias": False,
                                    "attention": {"name": "mha", "conv": 3}})), text(config())  # fmt: skip
    with pytest.raises(CheckpointError, match="conv"):
        model.save_pretrained(tmp_path, format="family")
    model.save_pretrained(tmp_path)
    assert torch.equal(GPTModel.from_pretrained(tmp_path)(ids), model(ids))
