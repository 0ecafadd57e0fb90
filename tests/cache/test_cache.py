"""Operations of caches: growth, refusal when full, reordering of rows, reset and truncation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.cache import TokenCache
from modular_gpt.core.registry import entries
from tests.components.cases import MODEL
from tests.components.laws import build, close, feed, text

VARIANTS = {
    **{name: {"name": name} for name in entries("attention")},
    "swa": {"name": "swa", "window": 5},
    "mla in a window": {"name": "mla", "window": 5},
}
MIXED = {
    "variants": {"local": {"attention": {"name": "swa", "window": 5}}, "state": {"attention": "linear"}},
    "cycle": ["local", "base", "state"],
}


def config(variant: str = "mha", **changes: object) -> GPTConfig:
    return GPTConfig(**{**MODEL, "context_length": 256, "attention": VARIANTS[variant], **changes})


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_growing_cache_keeps_its_content(variant: str) -> None:
    model = build(config(variant), std=0.2)
    ids = text(model.config, 2, 200)
    expected = model(ids)
    for counts in ([1, 62, 1, 1, 1, 63], [60, 100], [130, 1, 1]):
        cache = model.new_cache(2)
        close(feed(model, ids, cache, counts), expected)
        for layer in cache.layers:
            if isinstance(layer, TokenCache):
                assert layer.capacity <= (layer.window or 2 * 200)


@torch.no_grad()
def test_the_storage_is_reallocated_only_when_it_doubles() -> None:
    model = GPTModel(config())
    cache = model.new_cache(1)
    addresses = []
    for token in text(model.config, 1, 200).split(1, dim=1):
        model(token, cache=cache)
        addresses.append(cache.layers[0].tensors[0].data_ptr())
    moved = [i for i in range(1, 200) if addresses[i] != addresses[i - 1]]
    assert set(moved) <= {64, 128} and cache.layers[0].capacity == 256


@torch.no_grad()
def test_a_growing_ring_buffer_reaches_its_window() -> None:
    """Its capacity doubles until the window of 100 is reached, also within a chunk."""
    model = build(config(attention={"name": "swa", "window": 100}), std=0.2)
    ids = text(model.config, 1, 230)
    for counts in ([1] * 230, [63, 2, 50, 1, 1], [99, 1, 1], [150, 1]):
        cache = model.new_cache(1)
        close(feed(model, ids, cache, counts), model(ids))
        assert cache.nbytes() == model.config.cache_bytes(1, 230)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_full_cache_raises_and_stays_unchanged(variant: str) -> None:
    model = build(config(variant))
    ids = text(model.config, 2, 12)
    cache = model.new_cache(2, 11)
    feed(model, ids[:, :10], cache, [])
    with pytest.raises(ConfigError) as error:
        model(ids[:, 10:], cache=cache)
    assert str(error.value) == "the cache holds 11 tokens and cannot take 12; make a longer one"
    close(model(ids[:, 10:11], cache=cache), model(ids)[:, 10:11])


def test_positions_past_a_learned_table_are_refused() -> None:
    model = build(config(pos="learned", context_length=8))
    ids = text(model.config, 1, 9)
    message = "9 tokens do not fit pos=learned, which has 8 positions"
    with pytest.raises(ConfigError, match=message) as error:
        model(ids)
    assert "\n" not in str(error.value)
    cache = model.new_cache(1, 20)
    feed(model, ids[:, :8], cache, [3])
    with pytest.raises(ConfigError, match=message):
        model(ids[:, 8:], cache=cache)
    assert cache.length == 8


def test_a_wrong_number_of_rows_and_late_padding_are_refused() -> None:
    model = build(config())
    ids = text(model.config, 2, 6)
    with pytest.raises(ConfigError, match="the cache was made for 3 rows, got 2"):
        model(ids, cache=model.new_cache(3, 10))
    cache = model.new_cache(2, 10)
    model(ids[:, :3], cache=cache)
    with pytest.raises(ConfigError, match="give it with the first tokens of a cache only"):
        model(ids[:, 3:], cache=cache, padding=torch.tensor([0, 1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_cache_of_another_dtype_than_the_model_is_close(variant: str, dtype: torch.dtype) -> None:
    """Logits have the model's dtype and are near those without a cache: whole, in chunks, after the ring wraps."""
    model = build(config(variant), std=0.15)
    ids = text(model.config)
    expected = model(ids)
    for counts in ([], [1] * 20, [7, 1, 6]):
        actual = feed(model, ids, model.new_cache(3, 20, dtype), counts)
        assert actual.dtype == torch.float32
        assert (actual - expected).abs().mean() < 0.05 * expected.std()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_expanded_prompt_equals_repeated_rows(variant: str) -> None:
    model = build(config(variant))
    prompt, tails = text(model.config, 2, 9), text(model.config, 6, 7, seed=4)
    cache = model.new_cache(2, 16)
    model(prompt, cache=cache)
    cache.expand(3)
    assert cache.batch == 6 and cache.nbytes() == model.config.cache_bytes(6, 16)
    whole = torch.cat([prompt.repeat_interleave(3, dim=0), tails], dim=1)
    close(feed(model, tails, cache, [1, 1]), model(whole)[:, 9:])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_reordered_rows_keep_their_padding(variant: str) -> None:
    model = build(config(variant))
    ids, padding = text(model.config), torch.tensor([0, 4, 9])
    cache = model.new_cache(3, 20)
    model(ids[:, :12], cache=cache, padding=padding)
    order = torch.tensor([2, 0, 0])
    cache.reorder(order)
    actual = feed(model, ids[order, 12:], cache, [1, 3])
    for row, source in enumerate(order.tolist()):
        pad = int(padding[source])
        close(actual[row : row + 1], model(ids[source : source + 1, pad:])[:, 12 - pad :])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_reset_clears_the_content_and_keeps_the_storage(variant: str) -> None:
    model = build(config(variant))
    ids = text(model.config)
    cache = model.new_cache(3, 20)
    model(ids, cache=cache, padding=torch.tensor([0, 4, 9]))
    addresses = [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors]
    cache.reset()
    assert cache.length == 0 and cache.padding is None
    assert addresses == [tensor.data_ptr() for layer in cache.layers for tensor in layer.tensors]
    close(feed(model, ids.flip(1), cache, [1, 8]), model(ids.flip(1)))


@pytest.mark.parametrize("layers", [{}, MIXED], ids=["uniform", "mixed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_is_truncated_with_a_saved_state(variant: str, layers: dict) -> None:
    """After ``save``, all or some of the new tokens can be removed and replaced by others."""
    model = build(config(variant, layers=layers, n_layers=3), std=0.2)
    ids, other = text(model.config, 2, 30), text(model.config, 2, 30, seed=7)

    @settings(max_examples=25)
    @given(start=st.integers(0, 14), count=st.integers(1, 12), kept=st.integers(0, 12), grows=st.booleans())
    @torch.no_grad()
    def check(start: int, count: int, kept: int, grows: bool) -> None:
        kept = min(kept, count)
        cache = model.new_cache(2, None if grows else 30)
        feed(model, ids[:, :start], cache, [])
        saved = cache.save(count)
        feed(model, ids[:, start : start + count], cache, [])
        cache.truncate(start + kept, saved)
        assert start <= cache.length <= start + kept
        replaced = torch.cat([ids[:, : start + kept], other[:, start + kept :]], dim=1)
        begin = int(cache.length)
        close(feed(model, replaced[:, begin:], cache, [1, 1]), model(replaced)[:, begin:])

    check()


@torch.no_grad()
def test_a_growing_ring_buffer_is_truncated_before_it_is_full() -> None:
    model = build(config(attention={"name": "swa", "window": 100}), std=0.2)
    ids = text(model.config, 1, 200)
    cache = model.new_cache(1)
    feed(model, ids[:, :10], cache, [])
    saved = cache.save(120)
    feed(model, ids[:, 10:130], cache, [])
    cache.truncate(50, saved)
    begin = int(cache.length)
    close(feed(model, ids[:, begin:], cache, [1]), model(ids)[:, begin:])


def test_truncation_without_a_saved_state_needs_all_rows() -> None:
    for variant in VARIANTS:
        model = build(config(variant))
        cache = model.new_cache(1, 20)
        feed(model, text(model.config, 1, 12), cache, [])
        if any(layer.forgets(12) for layer in cache.layers):
            with pytest.raises(ConfigError, match="this cache cannot go back") as error:
                cache.truncate(7)
            assert "\n" not in str(error.value) and cache.length == 12
        else:
            cache.truncate(7)
            assert cache.length == 7


@pytest.mark.parametrize(
    "variant", [variant for variant in VARIANTS if config(variant).layer_configs[0].cache_spec(config().dims).rows]
)
@torch.no_grad()
def test_a_window_for_the_model_equals_a_window_in_every_layer(variant: str) -> None:
    model = build(config(variant))
    ids = text(model.config)
    narrow = {**vars(model.config.attention), "window": min(7, model.config.attention.window or 7)}
    windowed = build(config(attention=narrow))
    for counts in ([], [3, 1, 1, 9], [1] * 20):
        close(feed(model, ids, model.new_cache(3, 20, window=7), counts), windowed(ids))
