"""Adapters around a linear layer and hooks on it run at every step, also when decoding with a cache or compiled."""

import pytest
import torch
from torch import Tensor, nn

from modular_gpt import GPTConfig, GPTModel
from tests.components.cases import MODEL
from tests.components.laws import build, close, feed, text

ATTENTIONS = ["mha", "gqa", "mla", "linear"]


class Doubled(nn.Module):
    """A wrapper with the attributes of its inner layer, like an adapter of peft."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


def model_with(attention: str) -> GPTModel:
    return build(GPTConfig(**{**MODEL, "attention": attention, "pos": "rope"}))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layer", ["key", "value"])
def test_a_wrapped_layer_gives_equal_results_with_a_cache(attention: str, layer: str) -> None:
    model = model_with(attention)
    for block in model.blocks:
        setattr(block.attention, layer, Doubled(getattr(block.attention, layer)))
    ids = text(model.config)
    with torch.no_grad():
        close(feed(model, ids, model.new_cache(len(ids)), [1] * ids.shape[1]), model(ids))


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layer", ["key", "value"])
def test_a_hook_runs_at_every_step(attention: str, layer: str) -> None:
    model, calls = model_with(attention), []
    for block in model.blocks:
        getattr(block.attention, layer).register_forward_hook(lambda module, args, out: calls.append(1) or 2 * out)
    ids = text(model.config)
    with torch.no_grad():
        expected = model(ids)
        calls.clear()
        close(feed(model, ids, model.new_cache(len(ids)), [1] * ids.shape[1]), expected)
    assert len(calls) == ids.shape[1] * len(model.blocks)
