"""The logit lens and the measures of heads, on models with known results."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modular_gpt import ConfigError, GPTConfig, GPTModel, ablate_heads, capture, head_scores, logit_lens
from modular_gpt.inspection import attention_maps
from tests.components.laws import build, text

SMALL = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=3, context_length=48)


@pytest.mark.parametrize("settings", [{}, {"topology": "post", "embed_norm": True}, {"topology": "parallel"}])
def test_the_lens_ends_with_the_logits_and_begins_with_the_embedding(settings: dict[str, object]) -> None:
    model = build(GPTConfig(**SMALL, **settings))
    ids = text(model.config)
    lens = logit_lens(model, ids)
    with torch.no_grad():
        assert torch.equal(lens[-1], model(ids))
        with capture(model, "embedding") as seen:
            model(ids)
        norm = torch.nn.Identity() if model.final_norm is None else model.final_norm
        assert torch.equal(lens[0], model.logits(norm(seen["embedding"])))
    assert lens.shape == (4, 3, 20, 31) and not lens.requires_grad


class Looks(torch.nn.Module):
    """A fake attention: each head puts its weight on one known position."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.described = "by hand"

    def forward(self, x: Tensor, pos: object, cache: object = None) -> Tensor:
        from modular_gpt.core.observer import report

        count = x.shape[1]
        rows = torch.arange(count)
        targets = [rows - 1, 0 * rows, rows, rows - self.length + 1]  # previous, first, itself, induction
        weights = torch.stack([F.one_hot(target.clamp(min=0), count).float() for target in targets])
        report("attention.weights", weights.expand(len(x), -1, -1, -1))
        return torch.zeros_like(x)


def test_heads_that_attend_to_one_position_score_one() -> None:
    model = GPTModel(GPTConfig(**SMALL))
    model.blocks[1].attention = Looks(length=10)  # type: ignore[assignment]
    scores = head_scores(model, length=10)
    found = torch.stack([scores[name][1] for name in ("previous", "first", "itself", "induction")])
    assert torch.equal(found.diagonal(), torch.ones(4))
    assert (found - torch.eye(4)).abs().max() < 0.5  # the positions coincide near the beginning


def test_scores_are_fractions_of_the_weight() -> None:
    scores = head_scores(build(GPTConfig(**SMALL)))
    assert set(scores) == {"previous", "first", "itself", "induction"}
    for score in scores.values():
        assert score.shape == (3, 4)
        assert ((score >= 0) & (score <= 1)).all()
    with pytest.raises(ConfigError, match="length=30 must lie between 2 and half the context length, 24"):
        head_scores(build(GPTConfig(**SMALL)), length=30)


def test_scores_of_mixers_without_a_softmax() -> None:
    """Absolute weights over their sum; the mean over channels of a short convolution; one score per head."""
    variants = {"delta": {"attention": {"name": "gated_delta", "value_heads": 6}}, "conv": {"attention": "shortconv"}}
    model = build(GPTConfig(**SMALL, layers={"cycle": ["delta", "conv", "delta"], "variants": variants}))
    ids = text(model.config)
    with torch.no_grad(), capture(model, "*.weights") as seen:
        model(ids)
    maps = attention_maps(model, ids)
    assert [weights.shape[1] for weights in maps.values()] == [6, 1, 6]
    for layer, weights in maps.items():
        sizes = seen[f"blocks.{layer}.attention.weights"].abs()
        sizes = sizes.mean(1, keepdim=True) if layer == 1 else sizes
        torch.testing.assert_close(weights, sizes / sizes.sum(-1, keepdim=True))
    taps = model.blocks[1].attention.conv.weight.abs().mean(0)
    torch.testing.assert_close(maps[1][0, 0, 9, 7:10], (taps / taps.sum()).detach())
    scores, rises = head_scores(model), ablate_heads(model, ids[:, :-1], ids[:, 1:])
    assert scores["previous"].shape == rises.shape == (3, 6)
    assert scores["previous"][[0, 2]].isfinite().all() and scores["previous"][1, 1:].isnan().all()
    torch.testing.assert_close(scores["itself"][1, 0], (taps[-1] / taps.sum()).detach(), atol=0.01, rtol=0)
    assert (rises[[0, 2]] != 0).all() and rises[1].isnan().all()


def test_measures_keep_the_mode_of_the_model_and_use_no_dropout() -> None:
    model = build(GPTConfig(**SMALL, dropout=0.5)).train()
    ids = text(model.config)
    assert torch.equal(logit_lens(model, ids), logit_lens(model, ids))
    assert torch.equal(ablate_heads(model, ids[:, :-1], ids[:, 1:]), ablate_heads(model, ids[:, :-1], ids[:, 1:]))
    assert all(torch.equal(a, b) for a, b in zip(head_scores(model).values(), head_scores(model).values(), strict=True))
    assert model.training


@torch.no_grad()
def test_ablation_finds_unused_heads() -> None:
    """Ablating a head whose columns of the output projection are zero does not change the loss; other heads do."""
    model = build(GPTConfig(**SMALL))
    width = 32 // 4
    model.blocks[2].attention.out.weight[:, width : 2 * width] = 0
    ids = text(model.config)
    rises = ablate_heads(model, ids[:, :-1], ids[:, 1:])
    assert rises.shape == (3, 4)
    assert rises[2, 1] == 0 and (rises != 0).sum() == 11

    def without(heads: Tensor) -> Tensor:  # the reference for one head
        return torch.cat([heads[:, :3], heads[:, 3:].mean((0, 1, 2)).expand_as(heads[:, 3:])], dim=1)

    intact = model(ids[:, :-1], ids[:, 1:]).loss
    with capture(model, edit={"blocks.0.attention.heads": without}):
        ablated = model(ids[:, :-1], ids[:, 1:]).loss
    torch.testing.assert_close(rises[0, 3], ablated - intact)


def test_layers_without_weights_or_heads_are_nan() -> None:
    model = build(GPTConfig(**SMALL))
    model.blocks[1].attention = Looks(length=10)  # type: ignore[assignment]  # reports no heads
    ids = text(model.config)
    rises = ablate_heads(model, ids[:, :-1], ids[:, 1:])
    assert rises[1].isnan().all() and rises[0].isfinite().all()
