"""Rows of a cache move where they differ alone: the searches give bitwise what they give when whole rows are copied."""

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.core.cache import ModelCache, TokenCache
from modular_gpt.core.registry import entries
from modular_gpt.generation import GenerationConfig, complete
from modular_gpt.generation.lineage import Lineage


@pytest.mark.parametrize("seed", range(5))
def test_columns_that_stay_are_equal_in_both_rows(seed: int) -> None:
    """Against rows of numbers that are copied as a whole: what is called unchanged is, and the next column is not."""
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


def model(attention: str, context: int = 32) -> GPTModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 13, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": context, "init_std": 0.4}
    return GPTModel(**sizes, attention=attention).eval()


SEARCHES = {
    "beam": {"strategy": "beam", "num_beams": 4, "num_return_sequences": 4},
    "contrastive": {"strategy": "contrastive", "contrastive_candidates": 4},
}


@pytest.mark.parametrize("attention", entries("attention"))
@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("overflow", [{}, {"overflow": "window", "max_new_tokens": 40}])
def test_searches_are_bitwise_those_of_whole_copies(
    attention: str, search: str, overflow: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerationConfig(**{"max_new_tokens": 16, "stop_tokens": [3], **SEARCHES[search], **overflow})
    prompts = [[1, 2, 5, 7, 4, 4], [8, 6]]
    found = complete(model(attention), prompts, settings)
    monkeypatch.setattr(ModelCache, "reorder", lambda self, rows, unchanged=0: REORDER(self, rows))
    assert complete(model(attention), prompts, settings) == found


REORDER = ModelCache.reorder


@pytest.mark.parametrize(("search", "most"), [("beam", 0.25), ("contrastive", 0.05)])
def test_few_columns_move(search: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text of 100 tokens after a prompt of 100; a whole copy counts with its whole capacity."""
    moved: list[int] = []
    select = TokenCache.select

    def counted(self: TokenCache, rows: torch.Tensor, columns: slice = slice(None)) -> None:
        before = self.tensors[0]
        select(self, rows, columns)
        moved.append(len(range(self.capacity)[columns]) if before is self.tensors[0] else self.capacity)

    monkeypatch.setattr(TokenCache, "select", counted)
    settings = GenerationConfig(max_new_tokens=100, **SEARCHES[search])
    complete(model("mha", 256), [[1, 2] * 50], settings)
    steps = moved[2:]  # the first copies expand the prompt's row, in two layers
    assert len(steps) >= 190 and sum(steps) <= most * 200 * len(steps), sum(steps) / len(steps)
