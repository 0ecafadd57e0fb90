"""Activation checkpointing combined with the compiler, low precision and the chunked loss.

A law of every component tests that it does not change the results (tests/components/laws.py).
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import modular_gpt.model.loss
from modular_gpt import GPTConfig
from tests.components.cases import MODEL
from tests.components.laws import build, text

KINDS: list[dict[str, Any]] = [
    {"dropout": 0.1},
    {"attention": "mla", "pos": "alibi"},
    {"ffn": {"name": "moe", "balance": "bias"}, "attention": {"name": "swa", "window": 5}},
]


def results(
    config: GPTConfig, every: int, backend: str | None = None, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The loss, gradients and counts of one batch."""
    model, ids = build(config).train(), text(config, rows=4)
    model.checkpoint_activations(every)
    torch._dynamo.reset()
    forward = torch.compile(model, fullgraph=True, backend=backend) if backend else model
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = forward(ids[:, :-1], ids[:, 1:]).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize(("settings", "layers"), list(zip(KINDS, (2, 1, 1), strict=True)), ids=str)
def test_compiled(settings: dict[str, Any], layers: int) -> None:
    """Checkpointing of every block, and of every second of two; blocks are compiled separately, which takes seconds."""
    config = GPTConfig(**{**MODEL, **settings, "n_layers": layers})
    expected = results(config, 0, "aot_eager")
    for every in range(1, layers + 1):
        for one, other in zip(results(config, every, "aot_eager"), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("every", [2, 3])
def test_checkpointing_of_some_blocks(settings: dict[str, Any], every: int) -> None:
    """Checkpointed blocks alternate with others; checkpointing of every block is a law of the components."""
    config = GPTConfig(**{**MODEL, **settings, "n_layers": 4})
    for one, other in zip(results(config, every), results(config, 0), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_under_autocast(settings: dict[str, Any]) -> None:
    config = GPTConfig(**{**MODEL, **settings})
    for one, other in zip(
        results(config, 1, dtype=torch.bfloat16), results(config, 0, dtype=torch.bfloat16), strict=True
    ):
        assert torch.equal(one, other)


def test_with_the_loss_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modular_gpt.model.loss, "_CHUNK", 10 * MODEL["vocab_size"])
    config = GPTConfig(**MODEL)
    for one, other in zip(results(config, 1), results(config, 0), strict=True):
        assert torch.equal(one, other)


def test_every_nth_block() -> None:
    model = build(GPTConfig(**{**MODEL, "n_layers": 5}))
    for every, expected in [(1, "11111"), (2, "10101"), (3, "10010"), (9, "10000"), (0, "00000")]:
        model.checkpoint_activations(every)
        assert "".join(str(int(block.recomputes)) for block in model.blocks) == expected


def test_no_recomputation_without_gradients() -> None:
    model, ids = build(GPTConfig(**MODEL)), text(GPTConfig(**MODEL))
    model.checkpoint_activations()
    with torch.no_grad():
        expected = model(ids)
        cache = model.new_cache(len(ids))
        model(ids[:, :7], cache=cache)
        torch.testing.assert_close(model(ids[:, 7:], cache=cache), expected[:, 7:])
    assert torch.equal(model(ids).detach(), expected)
