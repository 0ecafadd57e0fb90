"""Compiled decoding: one graph for all steps, and text equal to eager decoding."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from modular_gpt.generation import GenerationConfig, complete, generate
from modular_gpt.generation.compiled import capacity, compiled_step
from modular_gpt.generation.runner import ModelRunner
from modular_gpt.generation.sequences import TokenBuffer
from tests.generation.models import ATTENTIONS, PAIRS, naive_greedy, prompts, tiny


class Graphs:
    """A torch.compile backend that counts graphs and runs them eagerly."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs()
    torch._dynamo.reset()


@torch.no_grad()
def decoded(graphs: Graphs, model: Any, text: TokenBuffer, count: int, **settings: Any) -> torch.Tensor:
    decoder = ModelRunner(model, text, text.length + count - 1, step=compiled_step(graphs), **settings)
    for _ in range(count):
        text.append(decoder.logits()[:, -1].argmax(-1, keepdim=True))
    return text.ids


# Only rope and ALiBi interact with an attention; the other positions are added to the embedding.
INSIDE = [(a, p) for a, p in PAIRS if a == "mha" or p in ("rope", "alibi") or (a, p) == ("linear", "none")]


@pytest.mark.parametrize(("attention", "pos"), INSIDE)
def test_one_graph_for_all_steps_and_all_lengths(graphs: Graphs, attention: str, pos: str) -> None:
    model = tiny(attention, pos, n_layers=1)
    for length in (1, 9):
        ids = prompts(2, length)
        assert torch.equal(decoded(graphs, model, TokenBuffer(ids, 25), 25), naive_greedy(model, ids, 25))
    assert graphs.count == 1


@pytest.mark.parametrize(("attention", "pos"), [("mha", "alibi"), ("swa", "rope"), ("mla", "rope"), ("linear", "none")])
def test_one_graph_past_the_context(graphs: Graphs, attention: str, pos: str) -> None:
    model, ids = tiny(attention, pos, context_length=8), prompts(2, 3)
    expected = generate(model, ids, 30, greedy=True)
    assert torch.equal(decoded(graphs, model, TokenBuffer(ids, 30), 30), expected)
    assert graphs.count == 1


def test_one_graph_when_the_window_is_reset(graphs: Graphs) -> None:
    model, ids = tiny(pos="learned", context_length=8), prompts(2, 3)
    expected = generate(model, ids, 30, greedy=True, overflow="window")
    assert torch.equal(decoded(graphs, model, TokenBuffer(ids, 30), 30, overflow="window"), expected)
    assert graphs.count == 1


@pytest.mark.parametrize("attention", ["mha", "mla", "linear", "streaming", "gated_delta", "shortconv"])
def test_one_graph_for_prompts_of_different_lengths(graphs: Graphs, attention: str) -> None:
    model = tiny(attention if attention in ATTENTIONS else {"name": attention})
    ids, padding = torch.tensor([[0, 0, 5], [1, 2, 3]]), torch.tensor([2, 0])
    expected = generate(model, ids, 20, padding=padding, greedy=True)
    assert torch.equal(decoded(graphs, model, TokenBuffer(ids, 20, padding), 20), expected)
    assert graphs.count == 1


def test_mixtures_of_experts_compile(graphs: Graphs) -> None:
    model, ids = tiny(ffn={"name": "moe", "n_experts": 4}), prompts(2)
    assert torch.equal(decoded(graphs, model, TokenBuffer(ids, 20), 20), naive_greedy(model, ids, 20))
    assert graphs.count == 1


def test_sizes_are_rounded_so_that_graphs_are_shared() -> None:
    assert [capacity(tokens, 1024) for tokens in (1, 128, 129, 300, 1000, 5000)] == [128, 128, 256, 512, 1024, 1024]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compile_true_from_prompt_to_text() -> None:
    torch._dynamo.reset()
    model, ids = tiny("mha", n_layers=1), prompts(2)
    rules = {"seed": 1, "num_return_sequences": 2, "top_k": 5}
    assert torch.equal(generate(model, ids, 15, compile=True, **rules), generate(model, ids, 15, **rules))


def test_beam_search_reorders_compiled_caches(monkeypatch: pytest.MonkeyPatch, graphs: Graphs) -> None:
    from modular_gpt.generation import engine

    monkeypatch.setattr(engine, "compiled_step", lambda: compiled_step(graphs))
    settings = GenerationConfig(max_new_tokens=12, strategy="beam", num_beams=3, num_return_sequences=3)
    plain = complete(tiny(), [[1, 2, 3]], settings)
    settings.compile = True
    assert [text.ids for text in complete(tiny(), [[1, 2, 3]], settings)[0]] == [text.ids for text in plain[0]]
    assert graphs.count == 1
