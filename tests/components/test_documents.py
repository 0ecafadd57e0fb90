"""Documents packed into one row give the results of separate documents, in every algorithm."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.positions import Positions, document_starts
from modular_gpt.nn import sdpa as sdpa_module
from modular_gpt.nn.block_sparse import Documents
from modular_gpt.nn.packed_patterns import PackedLayout
from tests.components.cases import MODEL
from tests.components.laws import Law, build, close, packed_documents_are_separate, text
from tests.components.test_block_sparse import Largest, use_blocks

LENGTHS = ([9, 1, 30, 24], [40, 3, 21])  # lengths of the documents of two rows of 64 tokens
ATTENTIONS: dict[str, dict[str, Any]] = {
    "mha": {"name": "mha"},
    "gqa with sinks": {"name": "gqa", "sinks": True},
    "softcap": {"name": "mha", "softcap": 2.0},
    "window": {"name": "swa", "window": 7},
    "mla": {"name": "mla"},
    "linear": {"name": "linear", "chunk": 8},
    "bigbird": {"name": "sparse", "window": 5, "global_tokens": 3, "random_blocks": 1, "block": 4},
    "longformer": {
        "name": "sparse",
        "pattern": "longformer",
        "window": 3,
        "dilation": 2,
        "global_tokens": 2,
        "block": 4,
    },
    "strided": {"name": "sparse", "pattern": "strided", "window": 3, "stride": 2, "block": 4, "n_kv_heads": 1},
    "streaming": {"name": "sparse", "pattern": "streaming", "window": 5, "sinks": True, "block": 4},
    "chunked": {"name": "sparse", "pattern": "chunked", "chunk": 6, "softcap": 2.0, "block": 4},
}


def packed() -> Tensor:
    """(2, 64) document numbers."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in LENGTHS])


def one_by_one(ids: Tensor) -> Iterator[tuple[int, slice]]:
    """Row and columns of each document."""
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            yield row, slice(start, start + length)
            start += length


@pytest.fixture(params=["mask", "blocks"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Force the algorithms of long inputs on small ones."""
    if request.param == "blocks":
        use_blocks(monkeypatch)
        monkeypatch.setattr(sdpa_module, "_DOCUMENTS_FROM", 0)
        monkeypatch.setattr(sdpa_module, "_DOCUMENT_BLOCK", 4)
        monkeypatch.setattr(sdpa_module, "_DOCUMENT_LISTS", 1)


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("pos", ["rope", "alibi", "learned"])
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_loss_and_gradients_equal_those_of_single_documents(attention: dict[str, Any], pos: str) -> None:
    if (attention["name"], pos) == ("linear", "alibi"):
        pos = "none"
    config = GPTConfig(**{**MODEL, "pos": pos, "context_length": 64, "attention": attention})
    model = build(config).double()
    ids, targets, documents = text(config, 2, 64), text(config, 2, 64, seed=5), packed()
    losses, gradients = [], []
    for packs in (True, False):
        model.zero_grad()
        if packs:
            total = model(ids, targets, documents=documents).loss * ids.numel()
        else:
            total = torch.stack(
                [
                    model(ids[row, cut][None], targets[row, cut][None]).loss * (cut.stop - cut.start)
                    for row, cut in one_by_one(ids)
                ]
            ).sum()
        total.backward()
        losses.append(total.detach())
        gradients.append([parameter.grad for parameter in model.parameters()])
    tolerance = 2e-4 if attention["name"] == "linear" else 2e-6  # the loss is float32; so is all of linear attention
    torch.testing.assert_close(losses[0], losses[1], atol=0, rtol=tolerance)
    largest = max(gradient.abs().max() for gradient in gradients[1])  # some gradients are sums that cancel out
    for got, expected in zip(*gradients, strict=True):
        assert (got - expected).abs().max() <= tolerance * largest


@pytest.mark.usefixtures("algorithm")
@pytest.mark.parametrize("law", [packed_documents_are_separate], ids=lambda law: law.__name__)
@pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_dynamic_angles_grow_with_the_document(attention: dict[str, Any], law: Law) -> None:
    scaling = {"kind": "dynamic", "factor": 4.0, "original_context_length": 6}
    law(GPTConfig(**{**MODEL, "pos": {"name": "rope", "scaling": scaling}, "attention": attention}))


@pytest.mark.parametrize("attention", ["mha", "swa", "linear"])
def test_a_compiled_graph_supports_documents(attention: str) -> None:
    config = GPTConfig(**{**MODEL, "n_layers": 1, "context_length": 64, "attention": attention})
    model, ids, documents = build(config), text(config, 2, 64), packed()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(ids, documents=documents), model(ids, documents=documents))


def test_long_rows_of_short_documents_allocate_no_square_tensor() -> None:
    length = 2048
    model = build(GPTConfig(**{**MODEL, "n_layers": 1, "n_heads": 2, "d_model": 16, "context_length": length})).train()
    ids = text(model.config, 1, length)
    with Largest() as largest:
        model(ids, ids, documents=torch.arange(length)[None] // 100).loss.backward()
    assert largest.numbers < length * length / 2


SPARSE = {
    "bigbird": {"window": 16, "global_tokens": 8, "random_blocks": 1, "block": 8},
    "longformer": {"pattern": "longformer", "window": 16, "dilation": 2},
    "strided": {"pattern": "strided", "window": 16, "stride": 32, "block": 8},
    "streaming": {"pattern": "streaming", "window": 16},
    "chunked": {"pattern": "chunked", "chunk": 16},
}


@pytest.mark.parametrize("pos", ["rope", "alibi"])
@pytest.mark.parametrize("settings", SPARSE.values(), ids=SPARSE.keys())
def test_patterns_in_documents_allocate_no_square_tensor(settings: dict[str, Any], pos: str) -> None:
    """Documents longer than the number of visible keys of a query."""
    length, sizes = 1024, {"n_layers": 1, "n_heads": 2, "d_model": 16, "pos": pos, "context_length": 1024}
    model = build(GPTConfig(**{**MODEL, **sizes, "attention": {"name": "sparse", **settings}})).train()
    ids = text(model.config, 1, length)
    with Largest() as largest:
        model(ids, ids, documents=torch.arange(length)[None] // 301).loss.backward()
    assert largest.numbers < length * length / 4


def test_documents_begin_at_blocks() -> None:
    """Documents of 3, 5 and 1 tokens in one row, and of 9 in the other, with blocks of 4."""
    starts = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 3, 8], [0] * 9])
    layout = PackedLayout.of(starts, 4)
    assert layout.slot.tolist() == [[0, 1, 2, 4, 5, 6, 7, 8, 12], list(range(9))]
    assert layout.origin.tolist() == [[0, 1, 1, 3], [0, 0, 0, 3]]
    assert (layout.slots, layout.longest) == (16, 3)
    assert layout.column.gather(1, layout.slot).tolist() == [list(range(9))] * 2


def test_text_lengths_count_the_document_of_each_token() -> None:
    pos = Positions(
        0, 6, None, torch.device("cpu"), document_starts=document_starts(torch.tensor([[7, 7, 3, 7, 7, 7]]))
    )
    assert pos.text_lengths().tolist() == [[2, 2, 1, 3, 3, 3]]
    assert pos.index.tolist() == [[0, 1, 0, 0, 1, 2]]
    assert pos.narrow(1, 3).index.tolist() == [[1, 0, 0]]
    assert Positions(2, 3, torch.tensor([1]), torch.device("cpu")).text_lengths().tolist() == [[4]]


def test_lists_are_as_long_as_the_furthest_document() -> None:
    starts = torch.tensor([[0, 0, 0, 0, 0, 5, 5, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert Documents.longest_list(starts, 2) == 3
    assert Documents.longest_list(starts[1:], 2) == 1
    assert Documents(starts, 2, 3).table(0, 4, starts.device).tolist() == [
        [[0, -1, -1], [1, 0, -1], [2, 1, 0], [3, 2, -1]],
        [[0, -1, -1], [1, -1, -1], [2, -1, -1], [3, -1, -1]],
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"documents": torch.zeros(2, 5)}, "documents are whole numbers of the shape of the ids"),
        ({"documents": torch.zeros(2, 4, dtype=torch.long)}, "documents are whole numbers of the shape of the ids"),
        ({"padding": torch.tensor([0, 1])}, "without a cache and without padding"),
        ({"use_cache": True}, "without a cache and without padding"),
    ],
)
def test_invalid_documents_are_refused(wrong: dict[str, Any], message: str) -> None:
    model = GPTModel(GPTConfig(**MODEL))
    documents = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(ConfigError, match=message):
        model(torch.zeros(2, 5, dtype=torch.long), **{"documents": documents, **wrong})
