"""Block-sparse attention equals a mask in values and gradients, and never allocates a T x T tensor."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.positions import Positions, document_starts
from modular_gpt.core.registry import entries
from modular_gpt.nn import sdpa as sdpa_module
from modular_gpt.nn.block_sparse import (
    Band,
    BlockRule,
    Documents,
    SlidingWindow,
    band_attention,
    block_size,
    block_sparse_attention,
)
from modular_gpt.training import TrainerConfig
from modular_gpt.training.estimate import activation_bytes
from tests.components.cases import CHOSEN, MODEL, Case
from tests.components.laws import (
    TOKENS,
    Law,
    any_chunking,
    build,
    causal,
    compiles_whole,
    every_parameter_learns,
    feed,
    ragged_rows,
    recomputing_changes_nothing,
    text,
)

WIDTH = 4
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GlobalAndRandom(BlockRule):
    """Causal BigBird: the first block, one random earlier block, and the block of the query."""

    block: int

    def table(self, first: int, blocks: int, device: torch.device) -> Tensor:
        diagonal = first // self.block + torch.arange(blocks)
        drawn = diagonal * 7 % 5 % diagonal.clamp(min=1)
        listed = torch.stack([torch.zeros_like(diagonal), drawn, diagonal, diagonal + 1], dim=1)
        twice = torch.stack([listed[:, i, None].eq(listed[:, :i]).any(1) for i in range(4)], dim=1)
        return listed.masked_fill(twice, -1)[None]

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        return key <= query


def kernel(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Reference: (B, H, T, N), (B, K, S, N), (B, K, S, M), (B or 1, 1, T, S) -> (B, H, T, M)."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    return (q @ k.transpose(-1, -2)).masked_fill(~seen, -torch.inf).softmax(-1) @ v


def inputs(batch: int, heads: tuple[int, int], n_queries: int, n_keys: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(n_queries + 100 * n_keys)
    shapes = [(heads[0], n_queries, WIDTH), (heads[1], n_keys, WIDTH), (heads[1], n_keys, WIDTH + 1)]
    made = [torch.randn(batch, *shape, dtype=dtype, generator=generator) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def assert_same(attend: Attend, expected: Attend, tensors: list[Tensor]) -> None:
    """Equal values, and equal gradients of a weighted sum with a different weight for every element."""
    outs, gradients = [], []
    for function in (attend, expected):
        out = function(*tensors)
        weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        outs.append(out)
        gradients.append(torch.autograd.grad((out * weights).sum(), tensors))
    tolerance = EXACT[tensors[0].dtype]
    assert (outs[0] - outs[1]).abs().max() <= tolerance
    for got, wanted in zip(*gradients, strict=True):
        assert (got - wanted).abs().max() <= tolerance * (1 + wanted.abs().max())


def numbers(n_queries: int, n_keys: int) -> tuple[Tensor, Tensor]:
    """Positions of queries (1, 1, T, 1) and keys (1, 1, 1, S), as a single block."""
    return torch.arange(n_keys - n_queries, n_keys)[None, None, :, None], torch.arange(n_keys)[None, None, None]


SHAPES = st.tuples(st.integers(1, 20), st.integers(0, 12))  # queries, keys before them
HEADS = st.sampled_from([(2, 2), (4, 2), (3, 1)])
DTYPES = st.sampled_from(list(EXACT))


@settings(max_examples=40)
@given(shape=SHAPES, block=st.integers(1, 6), window=st.integers(1, 33), heads=HEADS, dtype=DTYPES)
def test_a_window_by_table_is_the_mask(
    shape: tuple[int, int], block: int, window: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    n_queries, n_keys = shape[0], sum(shape)
    rule = SlidingWindow(window, block)
    seen = rule.visible(*numbers(n_queries, n_keys))
    assert_same(
        lambda q, k, v: block_sparse_attention(q, k, v, rule, kernel),
        lambda q, k, v: kernel(q, k, v, seen),
        inputs(2, heads, n_queries, n_keys, dtype),
    )


@settings(max_examples=40)
@given(shape=SHAPES, block=st.integers(1, 6), window=st.integers(1, 33), heads=HEADS, dtype=DTYPES)
def test_a_band_is_the_mask(
    shape: tuple[int, int], block: int, window: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    n_queries, n_keys = shape[0], sum(shape)
    band = Band.of(n_queries, n_keys, window, block)
    assert band.head + band.blocks * block == n_queries
    if not band.blocks:
        return
    rule = SlidingWindow(window, block)
    query, key = numbers(n_queries, n_keys)
    first = query[:, :, band.head : band.head + block], key[..., band.first_key : band.first_key + band.keys]
    seen = rule.visible(*first)
    tensors = inputs(2, heads, n_queries, n_keys, dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return band_attention(q, k, v, band, lambda q, k, v: kernel(q, k, v, seen))

    def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernel(q, k, v, rule.visible(query, key))[:, :, band.head :]

    assert_same(attend, expected, tensors)
    with torch.no_grad():  # other views of the keys
        assert torch.allclose(attend(*tensors), expected(*tensors), rtol=0, atol=EXACT[dtype])


@pytest.mark.parametrize("before", [0, 8])
@pytest.mark.parametrize("n_queries", [8, 21, 24])
def test_other_patterns_are_other_tables(n_queries: int, before: int) -> None:
    n_keys = n_queries + before
    ids = torch.stack([torch.arange(n_keys) // 5, torch.arange(n_keys) // 11])
    query, key = numbers(n_queries, n_keys)
    starts = document_starts(ids)
    documents = Documents(starts, 4, Documents.longest_list(starts, 4))
    random = GlobalAndRandom(4)
    blocks = random.table(before, -(-n_queries // 4), torch.device("cpu"))[0]
    listed = torch.tensor([[n // 4 in blocks[(i - before) // 4] for n in range(n_keys)] for i in query.flatten()])
    same = (ids[:, before:, None] == ids[:, None]) & (query >= key)[0]
    masks = {documents: same, random: listed & random.visible(query, key)}
    for rule, seen in masks.items():
        seen = seen.view(-1, 1, n_queries, n_keys)
        assert_same(
            lambda q, k, v, rule=rule: block_sparse_attention(q, k, v, rule, kernel),
            lambda q, k, v, seen=seen: kernel(q, k, v, seen),
            inputs(2, (4, 2), n_queries, n_keys, torch.float64),
        )


def test_blocks_are_half_a_window() -> None:
    assert [block_size(window) for window in (1, 64, 127, 128, 256, 511, 512, 4096)] == [
        32,
        32,
        32,
        64,
        128,
        128,
        256,
        256,
    ]


# ------------------------------------------------------------- models

SOFTMAX = [
    case for case in CHOSEN if case.slot == "attention" and entries("attention")[case.name].component.accepts_bias
]
IN_BLOCKS = [case for case in SOFTMAX if "pattern" in case.settings]
WINDOWED = [case for case in CHOSEN if case.settings.get("window") or case.name == "swa" or case in IN_BLOCKS]
BLOCK_LAWS: list[Law] = [causal, any_chunking, ragged_rows, every_parameter_learns, recomputing_changes_nothing]


def use_blocks(patch: pytest.MonkeyPatch) -> None:
    """Use blocks of two and rotated rows, even where a mask would be faster."""
    patch.setattr(sdpa_module, "block_size", lambda window: 2)
    patch.setattr(sdpa_module, "_BLOCKS_FROM", 0)
    patch.setattr(sdpa_module, "_LONG", 1)
    patch.setattr(sdpa_module, "_ROWS", 1)
    patch.setattr(sdpa_module, "_RECOMPUTED", 0)
    patch.setattr(sdpa_module, "_TRAINED_ROWS", 3)


@pytest.fixture
def blocks_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    use_blocks(monkeypatch)


@pytest.mark.usefixtures("blocks_everywhere")
@pytest.mark.parametrize("law", BLOCK_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", WINDOWED, ids=lambda case: case.id)
def test_laws_hold_in_blocks(case: Case, law: Law) -> None:
    law(case.config())


@pytest.mark.usefixtures("blocks_everywhere")
@pytest.mark.parametrize("law", BLOCK_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", [case for case in SOFTMAX if case not in WINDOWED], ids=lambda case: case.id)
def test_laws_hold_in_chunks_of_rows(case: Case, law: Law) -> None:
    law(case.config())


@pytest.mark.usefixtures("blocks_everywhere")
def test_blocks_compile_whole() -> None:
    attention = {"name": "swa", "window": 5, "n_kv_heads": 2, "sinks": True}
    compiles_whole(GPTConfig(**{**MODEL, "n_layers": 1, "attention": attention}), backend="aot_eager")


COMBINED = {
    "plain": {},
    "gqa with sinks": {"n_kv_heads": 2, "sinks": True},
    "softcap": {"softcap": 2.0},
    "softcap with sinks": {"n_kv_heads": 1, "softcap": 2.0, "sinks": True},
    "written out": {"backend": "math", "qk_norm": "rmsnorm"},
}


def logits_and_gradients(model: GPTModel, padding: Tensor | None) -> list[Tensor]:
    """Logits of a text, and gradients of a weighted sum of those that are not padding."""
    ids = text(model.config)
    model.zero_grad()
    logits = model(ids, padding=padding)
    if padding is not None:
        logits = logits * (torch.arange(TOKENS) >= padding[:, None])[..., None]
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view(logits.shape)).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("pads", [None, [0, 4, 9]], ids=["full", "padded"])
@pytest.mark.parametrize("pos", ["rope", "alibi"])
@pytest.mark.parametrize("settings", COMBINED.values(), ids=COMBINED.keys())
def test_blocks_equal_the_mask(settings: dict[str, object], pos: str, pads: list[int] | None) -> None:
    """Windows shorter and longer than blocks and text, and no window; values and gradients in both precisions."""
    padding = None if pads is None else torch.tensor(pads)
    for dtype, tolerance in EXACT.items():
        models = [
            build(GPTConfig(**{**MODEL, "pos": pos, "attention": {"name": "mha", "window": window, **settings}})).to(
                dtype
            )
            for window in (1, 2, 5, 8, TOKENS - 1, TOKENS + 1, None)
        ]
        by_mask = [logits_and_gradients(model, padding) for model in models]
        with pytest.MonkeyPatch.context() as patch:
            use_blocks(patch)
            by_blocks = [logits_and_gradients(model, padding) for model in models]
        for got, wanted in zip(by_blocks, by_mask, strict=True):
            largest = max(float(gradient.abs().max()) for gradient in wanted)  # some gradients are sums that cancel out
            for one, other in zip(got, wanted, strict=True):
                assert (one - other).abs().max() <= tolerance * largest


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor returned by any operator."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                stored = tensor.untyped_storage().nbytes() // tensor.element_size()  # an expanded tensor stores few
                self.numbers = max(self.numbers, min(tensor.numel(), stored))
        return out


LONG = 1024
LINEAR = {
    "swa": {"name": "swa", "window": 16},
    "mqa": {"name": "mqa", "window": 16, "sinks": True},
    "mla": {"name": "mla", "window": 16},
    "softcap": {"name": "mha", "window": 16, "softcap": 2.0},
    "dropout": {"name": "mha", "window": 16, "dropout": 0.5},
    "bigbird": {"name": "sparse", "window": 16, "global_tokens": 8, "random_blocks": 1, "block": 8},
    "longformer": {"name": "sparse", "pattern": "longformer", "window": 16, "dilation": 2, "softcap": 2.0},
    "strided": {"name": "sparse", "pattern": "strided", "window": 16, "stride": 32, "block": 8, "n_kv_heads": 1},
    "streaming": {"name": "sparse", "pattern": "streaming", "window": 16, "sinks": True},
    "chunked": {"name": "sparse", "pattern": "chunked", "chunk": 16},
}


def long_model(attention: dict[str, object], pos: str, tokens: int = LONG) -> GPTModel:
    sizes = dict(n_layers=1, n_heads=2, d_model=16, context_length=tokens)
    return build(GPTConfig(**{**MODEL, **sizes, "pos": pos, "attention": attention}))


@pytest.mark.parametrize("pos", ["rope", "alibi"])
@pytest.mark.parametrize("attention", LINEAR.values(), ids=LINEAR.keys())
def test_training_with_a_window_allocates_no_square_tensor(attention: dict[str, object], pos: str) -> None:
    model = long_model(attention, pos).train()
    ids = text(model.config, rows=1, tokens=LONG)
    with Largest() as largest:
        model(ids, ids).loss.backward()
    assert largest.numbers < LONG * LONG / 4


SQUARES = {
    "alibi": ({"name": "mha"}, "alibi"),
    "softcap": ({"name": "gqa", "softcap": 2.0}, "rope"),
    "sinks": ({"name": "mha", "sinks": True}, "rope"),
    "dropout": ({"name": "mha", "dropout": 0.5}, "rope"),
    "mla": ({"name": "mla"}, "alibi"),
}


@pytest.mark.parametrize(("attention", "pos"), SQUARES.values(), ids=SQUARES.keys())
def test_training_of_full_attention_allocates_no_square_tensor(attention: dict[str, object], pos: str) -> None:
    model = long_model(attention, pos).train()
    ids = text(model.config, rows=1, tokens=LONG)
    with Largest() as largest:
        model(ids, ids).loss.backward()
    assert largest.numbers < LONG * LONG / 3  # scores and sinks of 128 queries in 2 heads


@pytest.mark.parametrize(("attention", "pos"), SQUARES.values(), ids=SQUARES.keys())
def test_saved_tensors_grow_linearly_with_the_text(attention: dict[str, object], pos: str) -> None:
    """Saved tensors of the backward pass; a T x T mask or weights would grow fourfold for twice the tokens."""
    kept = [
        activation_bytes(long_model(attention, pos, tokens).config, TrainerConfig(batch_size=1, max_steps=1))
        for tokens in (LONG, 2 * LONG)
    ]
    assert kept[1] < 2.1 * kept[0]


def test_dropout_in_chunks_is_equal_when_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is quadratic in the values v, so that the gradient by v times v is twice the loss."""
    monkeypatch.setattr(sdpa_module, "_RECOMPUTED", 0)
    monkeypatch.setattr(sdpa_module, "_TRAINED_ROWS", 4)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 19, 4, generator=generator, requires_grad=True) for _ in range(3))
    pos = Positions(0, 19, None, torch.device("cpu"))
    weighting = sdpa_module.Weighting(sdpa_module.AttentionScoreConfig(0.5, dropout=0.5), training=True)
    loss = sdpa_module.sdpa(q, k, v, pos, pos.columns, weighting).square().sum()
    loss.backward()
    torch.testing.assert_close((v.grad * v).sum(), 2 * loss)


@pytest.mark.parametrize("pads", [None, [300]], ids=["full", "padded"])
@pytest.mark.parametrize("pos", ["rope", "alibi"])
@pytest.mark.parametrize("attention", LINEAR.values(), ids=LINEAR.keys())
def test_a_prompt_past_the_ring_allocates_no_square_tensor(
    monkeypatch: pytest.MonkeyPatch, attention: dict[str, object], pos: str, pads: list[int] | None
) -> None:
    """Two chunks; the second one starts with a full ring buffer.

    Padded patterns that keep all tokens have no ring buffer: their second chunk has a mask for each chunk of rows.
    """
    monkeypatch.setattr(sdpa_module, "_ROWS", 32 * LONG)
    model = long_model(attention, pos)
    ids = text(model.config, rows=1, tokens=LONG)
    with Largest() as largest:
        padding = None if pads is None else torch.tensor(pads)
        feed(model, ids, model.new_cache(1, LONG), [LONG // 2], padding)
    assert largest.numbers < LONG * LONG / 8  # a quarter is the mask of the second chunk


def test_a_padded_prompt_of_full_attention_allocates_no_square_tensor() -> None:
    model = long_model({"name": "gqa"}, "rope")
    with Largest() as largest, torch.no_grad():
        model(text(model.config, rows=1, tokens=LONG), padding=torch.tensor([300]))
    assert largest.numbers < LONG * LONG / 8


def test_a_mask_allocates_a_square_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above can fail."""
    monkeypatch.setattr(sdpa_module, "_BLOCKS_FROM", LONG)
    monkeypatch.setattr(sdpa_module, "_RECOMPUTED", 2 * LONG * LONG)
    model = long_model({"name": "swa", "window": 16}, "rope")
    with Largest() as largest:
        model(text(model.config, rows=1, tokens=LONG))
    assert largest.numbers >= LONG * LONG
