"""Patterns of block-sparse attention: definitions, block tables, caches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.cache import CacheSpec
from modular_gpt.core.contracts import Positions
from modular_gpt.nn.attention.sparse import SparseAttention, pattern_of
from modular_gpt.nn.block_sparse import block_sparse_attention
from modular_gpt.nn.sparse_patterns import PATTERNS, BigBird, Chunked, Longformer, SparsePattern, Streaming, Strided
from tests.components.cases import MODEL
from tests.components.laws import build, close, feed, text
from tests.components.test_block_sparse import assert_same, inputs, kernel, numbers

PLACES = [
    BigBird(block=4, window=5, global_tokens=3, random_blocks=2, seed=7),
    BigBird(block=3, window=1, global_tokens=0, random_blocks=3),
    Longformer(block=4, window=3, dilation=3, global_tokens=5),
    Longformer(block=5, window=6, global_tokens=0),
    Strided(block=3, window=4, stride=2),
    Streaming(block=2, window=5, global_tokens=3),
    Chunked(block=4, chunk=6),
    Chunked(block=4, chunk=12),
    Chunked(block=2, chunk=1),
]


@settings(max_examples=60)
@given(
    pattern=st.sampled_from(PLACES),
    n_queries=st.integers(1, 30),
    before=st.integers(0, 13),
    heads=st.sampled_from([(2, 2), (4, 2)]),
)
def test_a_pattern_in_blocks_is_its_mask(
    pattern: SparsePattern, n_queries: int, before: int, heads: tuple[int, int]
) -> None:
    """Values and gradients; every visible key is in the list of blocks of its query."""
    n_keys = n_queries + before
    seen = pattern.visible(*numbers(n_queries, n_keys))
    assert_same(
        lambda q, k, v: block_sparse_attention(q, k, v, pattern, kernel),
        lambda q, k, v: kernel(q, k, v, seen),
        inputs(2, heads, n_queries, n_keys, torch.float64),
    )


@pytest.mark.parametrize("pattern", PLACES, ids=str)
def test_lists_have_the_declared_length_and_no_duplicates(pattern: SparsePattern) -> None:
    for blocks in (1, 2, 9):
        for first in (0, 5 * pattern.block):
            table = pattern.table(first, blocks, torch.device("cpu"))[0]
            assert table.shape[1] == pattern.n_blocks(first // pattern.block + blocks - 1)
            for row in table.tolist():
                listed = [block for block in row if block >= 0]
                assert len(set(listed)) == len(listed)


FORMULAS: dict[str, tuple[dict[str, int], Callable[[int, int], bool]]] = {
    "longformer": (
        {"window": 3, "dilation": 2, "global_tokens": 2},
        lambda q, k: k < 2 or (q - k) in (0, 2, 4),
    ),
    "strided": (
        {"window": 3, "stride": 2, "block": 4},
        lambda q, k: q - k < 3 or (q // 4 - k // 4) in (0, 2, 4, 6),
    ),
    "streaming": ({"window": 3, "global_tokens": 2}, lambda q, k: k < 2 or q - k < 3),
    "chunked": ({"chunk": 5}, lambda q, k: q // 5 == k // 5),
    "bigbird": ({"window": 3, "global_tokens": 2, "random_blocks": 0}, lambda q, k: k < 2 or q - k < 3),
}


def attention_of(settings: dict[str, Any], pos: str = "none", **model: Any) -> tuple[GPTModel, SparseAttention]:
    built = build(GPTConfig(**{**MODEL, "pos": pos, "attention": {"name": "sparse", **settings}, **model}))
    return built, built.blocks[0].attention


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_patterns_equal_an_explicit_mask(pattern: str) -> None:
    """Multi-head attention with the same weights and a mask from the definition of the pattern."""
    chosen, sees = FORMULAS[pattern]
    count, width = 20, MODEL["d_model"] // MODEL["n_heads"]
    _, module = attention_of({"pattern": pattern, "n_kv_heads": 2, **chosen})
    x = torch.randn(2, count, MODEL["d_model"], generator=torch.Generator().manual_seed(4))
    q, k, v = (
        layer(x).unflatten(-1, (-1, width)).transpose(1, 2) for layer in (module.query, module.key, module.value)
    )
    mask = torch.tensor([[key <= query and sees(query, key) for key in range(count)] for query in range(count)])
    mixed = kernel(q * width**-0.5, k, v, mask).transpose(1, 2).flatten(2)
    close(module(x, Positions(0, count, None, x.device)), module.out(mixed), 1e-5)


def test_random_blocks_are_random_fixed_and_whole() -> None:
    """Besides window and first tokens, all queries of a block see the same ``random_blocks`` whole blocks."""
    pattern = BigBird(block=4, window=5, global_tokens=4, random_blocks=2, seed=1)
    other = BigBird(block=4, window=5, global_tokens=4, random_blocks=2, seed=2)
    n = 400
    seen, differently = (p.visible(*numbers(n, n))[0, 0] for p in (pattern, other))
    drawn: list[set[int]] = []
    for query in range(n):
        keys = {key for key in range(query + 1) if seen[query, key]}
        assert set(range(min(4, query + 1))) | set(range(max(0, query - 4), query + 1)) <= keys
        diagonal = query // 4
        blocks = {key // 4 for key in keys if key >= 4 and query - key >= 5} - {diagonal, diagonal - 1}
        assert all(set(range(4 * block, 4 * block + 4)) <= keys for block in blocks)
        assert len(blocks) == min(2, max(0, diagonal - 2))
        if query % 4 == 3:
            drawn.append(blocks)
    assert seen.ne(differently).any()
    longer = pattern.visible(*numbers(2 * n, 2 * n))[0, 0, :n, :n]
    assert torch.equal(seen, longer)  # the same pattern in a longer text
    assert len(set.union(*drawn)) > 0.6 * n / 4  # spread over the text


STREAMING = {"pattern": "streaming", "window": 5, "global_tokens": 3}


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (STREAMING, 8),
        ({"pattern": "longformer", "window": 3, "dilation": 4, "global_tokens": 2}, 11),
        ({"pattern": "chunked", "chunk": 6}, 6),
        ({"pattern": "bigbird", "window": 3}, None),
        ({"pattern": "strided", "window": 3}, None),
    ],
    ids=lambda value: str(value),
)
def test_the_cache_keeps_the_keys_still_visible_in_the_pattern(chosen: dict[str, Any], kept: int | None) -> None:
    model, _ = attention_of({**chosen, "n_kv_heads": 2})
    row = 2 * 2 * (MODEL["d_model"] // MODEL["n_heads"]) * 4
    for tokens in (4, 24):
        rows = MODEL["n_layers"] * min(tokens, kept or tokens) * row
        assert model.new_cache(1, tokens).nbytes() == model.config.cache_bytes(1, tokens) == rows


@pytest.mark.parametrize("pads", [None, [0, 3, 7]], ids=["full", "padded"])
@pytest.mark.parametrize("pos", ["rope", "alibi"])
@torch.no_grad()
def test_drafts_are_rolled_back_in_a_streaming_cache(pos: str, pads: list[int] | None) -> None:
    """Also after the ring wraps, after rows are reordered, and with more draft tokens than the ring holds."""
    model, _ = attention_of(STREAMING, pos)
    ids = text(model.config, 3, 24)
    padding = None if pads is None else torch.tensor(pads)
    for cut in (2, 6, 9, 15):
        for drafted, kept in ((3, 1), (3, 2), (7, 0)):
            for max_length in (24, None):
                cache = model.new_cache(3, max_length)
                feed(model, ids[:, :cut], cache, [], padding)
                order = torch.tensor([2, 0, 1])
                cache.reorder(order)
                saved = cache.save(drafted)
                wrong = ids[order, cut : cut + drafted].clone()
                wrong[:, kept:] = (wrong[:, kept:] + 1) % model.config.vocab_size
                model(wrong, cache=cache)
                cache.truncate(cut + kept, saved)
                assert cache.length in (cut, cut + kept)
                rest = feed(model, ids[order, int(cache.length) :], cache, [1, 2])
                whole = model(ids[order], padding=None if padding is None else padding[order])
                count = min(rest.shape[1], 24 - 7)  # outputs of padding are undefined
                close(rest[:, -count:], whole[:, -count:])


@torch.no_grad()
def test_sink_tokens_stay_when_a_text_exceeds_its_context() -> None:
    """The first tokens of a text affect the logits of every later one; tokens between them and the window do not."""
    model, _ = attention_of(STREAMING, "none", n_layers=1)
    ids = text(model.config, 1, 60)
    for place, seen in ((0, True), (2, True), (3, False), (40, False), (57, True)):
        other = ids.clone()
        other[:, place] = (other[:, place] + 1) % model.config.vocab_size
        caches = [model.new_cache(1, 60, window=24) for _ in range(2)]
        logits = [
            feed(model, tokens, cache, [1] * 60)[:, -1] for tokens, cache in zip((ids, other), caches, strict=True)
        ]
        assert (not torch.equal(*logits)) == seen, place


def test_a_setting_of_another_pattern_is_refused() -> None:
    for chosen, message in (
        ({"pattern": "chunked", "window": 5}, "attention.pattern=chunked has no window, got 5"),
        ({"stride": 5}, "attention.pattern=bigbird has no stride"),
        ({"pattern": "star"}, "attention.pattern: no choice 'star'"),
        ({"backend": "flex"}, "attention=sparse has no backend=flex"),
        ({"random_blocks": -1}, "attention.random_blocks must be at least 0"),
        ({"block": 0}, "attention.block must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
            GPTConfig(**{**MODEL, "attention": {"name": "sparse", **chosen}})


def test_nulls_become_the_defaults_of_the_pattern() -> None:
    for name, pattern in PATTERNS.items():
        config = GPTConfig(**MODEL, attention={"name": "sparse", "pattern": name}).layer_configs[0].attention
        assert isinstance(config, SparseAttention.Config)
        assert pattern_of(config) == pattern(block=32)
    wide = GPTConfig(**MODEL, attention={"name": "sparse", "pattern": "streaming", "window": 256})
    assert pattern_of(wide.layer_configs[0].attention).block == 128


def test_a_spec_keeps_its_first_tokens_within_a_window() -> None:
    spec = CacheSpec(rows=((2, 4),), window=10, anchors=3)
    assert [spec.tokens(length) for length in (5, 13, 99)] == [5, 13, 13]
    assert spec.within(4).tokens(99) == 7
    assert Tensor is type(spec.allocate(1, 20, torch.float32, torch.device("cpu")).tensors[0])
