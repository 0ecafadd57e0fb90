"""Cache rows are copied only where they differ: searches are bitwise equal to those that copy whole rows."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from modular_gpt import GPTModel
from modular_gpt.core import cache as core_cache
from modular_gpt.core import convolution_cache
from modular_gpt.core.cache import ModelCache, TokenCache
from modular_gpt.core.registry import entries
from modular_gpt.generation import GenerationConfig, complete
from modular_gpt.generation.lineage import Lineage


@pytest.mark.parametrize("seed", range(5))
def test_unchanged_columns_are_equal_in_both_rows(seed: int) -> None:
    """By rows that are copied as a whole: columns reported as unchanged are equal, and the next column differs."""
    generator = torch.Generator().manual_seed(seed)
    prompts, copies, columns = 3, 4, 5
    prompt = torch.rand(prompts, columns, generator=generator).repeat_interleave(copies, 0)
    content, lineage = prompt, Lineage(prompts * copies, columns, torch.device("cpu"))
    for step in range(30):
        fresh = torch.rand(prompts * copies, 1 + step % 2, generator=generator)
        content = torch.cat([content, fresh], dim=1)
        parents = torch.randint(copies, (prompts, copies), generator=generator)
        parents = parents if step % 7 else torch.arange(copies).expand(prompts, -1)
        rows = (torch.arange(prompts)[:, None] * copies + parents).flatten()
        unchanged, moved = lineage.move(rows, content.shape[1]), content[rows]
        assert torch.equal(content[:, :unchanged], moved[:, :unchanged])
        assert unchanged == content.shape[1] or not torch.equal(content[:, unchanged], moved[:, unchanged])
        content = moved


def model(attention: str | dict, context: int = 32) -> GPTModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": context, "init_std": 0.4}
    return GPTModel(**sizes, attention=attention).eval()


SEARCHES = {
    "beam": {"strategy": "beam", "num_beams": 4, "num_return_sequences": 4},
    "contrastive": {"strategy": "contrastive", "contrastive_candidates": 4},
}


RINGS = {
    "window": {"name": "swa", "window": 7},
    "anchors": {"name": "sparse", "pattern": "streaming", "window": 7, "global_tokens": 2},
    "convolution": {"name": "mha", "conv": 3},
    "convolution and window": {"name": "swa", "window": 7, "conv": 3},
}


@pytest.mark.parametrize("attention", [*entries("attention"), *RINGS])
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("overflow", [{}, {"overflow": "window", "max_new_tokens": 40}])
def test_searches_equal_those_with_whole_copies_bitwise(
    attention: str, search: str, overflow: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationConfig(**{"max_new_tokens": 16, "stop_tokens": [3], **SEARCHES[search], **overflow})
    prompts, built = [[1, 2, 5, 7, 4, 4], [8, 6]], RINGS.get(attention, attention)
    found = complete(model(built), prompts, settings)
    monkeypatch.setattr(ModelCache, "reorder", lambda self, rows, *_: REORDER(self, rows))
    for module in (core_cache, convolution_cache):
        monkeypatch.setattr(module, "select_rows", copies)
    assert complete(model(built), prompts, settings) == found


def copies(tensors: list[torch.Tensor], rows: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.index_select(0, rows) for tensor in tensors]


class Copied(TorchDispatchMode):
    """Counts the selected elements."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.index_select.default, torch.ops.aten.index.Tensor):
            self.numbers += out.numel()
        return out


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("padding", [None, [3, 3, 0, 0]], ids=["full", "padded"])
@pytest.mark.parametrize("attention", RINGS)
def test_changed_slots_of_a_full_ring_are_copied(attention: str, padding: list[int] | None, columns: int) -> None:
    """Row 3 becomes a copy of row 2; all columns except the last ones are equal in both."""
    built, rows = model(RINGS[attention]), torch.tensor([0, 1, 2, 2])
    ids = torch.randint(13, (2, 20), generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    ids[:, -columns:] = torch.arange(4 * columns).view(4, columns)
    cache = built.new_cache(4, 30)
    with torch.no_grad():
        for token in range(20):
            pads = None if padding is None or token else torch.tensor(padding)
            built(ids[:, token : token + 1], cache=cache, padding=pads)
        tensors = [tensor for layer in cache.layers for tensor in layer.tensors]
        wanted = [tensor[rows] for tensor in tensors]
        with Copied() as copied:
            cache.reorder(rows, 20 - columns)
    assert all(torch.equal(one, other) for one, other in zip(tensors, wanted, strict=True))
    per_column = sum(tensor[0, :, 0].numel() for tensor in tensors if tensor.ndim == 4)
    history = sum(tensor[0].numel() for tensor in tensors if tensor.ndim == 3)
    assert copied.numbers <= columns * per_column + history + 100  # and some row indices


def test_changed_rows_of_a_state_are_copied() -> None:
    cache = model("linear").new_cache(4, 30)
    before = [tensor.normal_() for layer in cache.layers for tensor in layer.tensors]
    wanted = [tensor[[0, 1, 2, 2]] for tensor in before]
    with Copied() as copied:
        cache.reorder(torch.tensor([0, 1, 2, 2]), 5)
    after = [tensor for layer in cache.layers for tensor in layer.tensors]
    assert all(one is other for one, other in zip(after, before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(after, wanted, strict=True))
    assert copied.numbers <= sum(tensor.numel() for tensor in before) / 4 + 100


REORDER = ModelCache.reorder


@pytest.mark.parametrize(("search", "limit"), [("beam", 0.25), ("contrastive", 0.05)])
def test_few_columns_are_copied(search: str, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a text of 100 tokens after a prompt of 100; a copy of a whole row counts with its capacity."""
    moved: list[int] = []
    select = TokenCache.select

    def counted(self: TokenCache, rows: torch.Tensor, columns: slice = slice(None)) -> None:
        before = self.tensors[0]
        select(self, rows, columns)
        moved.append(len(range(self.capacity)[columns]) if before is self.tensors[0] else self.capacity)

    monkeypatch.setattr(TokenCache, "select", counted)
    settings = GenerationConfig(max_new_tokens=100, **SEARCHES[search])
    complete(model("mha", 256), [[1, 2] * 50], settings)
    steps = moved[2:]  # the first copies expand the row of the prompt in two layers
    assert len(steps) >= 190 and sum(steps) <= limit * 200 * len(steps), sum(steps) / len(steps)
