"""The predicted size of a cache equals its allocated size, and the size computed from the definitions."""

import gc

import pytest
import torch
from torch import Tensor

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.registry import entries
from tests.components.cases import MODEL
from tests.components.laws import allocated, feed, text

# bytes for 8 heads of width 16, 2 layers, 128 tokens, latents of 16, a window of 16, float32
PUBLISHED = dict(vocab_size=50, d_model=128, n_heads=8, n_layers=2, context_length=128)
CACHE_BYTES = [
    ({"name": "mla", "kv_lora_rank": 16}, "learned", 16_384),  # other libraries report 16,384 / 327,680 / 24,768
    ({"name": "mla", "kv_lora_rank": 16, "qk_rope_head_dim": 8}, "rope", 24_576),
    ({"name": "swa", "window": 16}, "learned", 32_768),  # other libraries report 262,144 / 32,768 / 32,768
    ("mha", "learned", 262_144),
    ({"name": "gqa", "n_kv_heads": 2}, "rope", 65_536),
    ("mqa", "alibi", 32_768),
    ("linear", "none", 2 * 8 * (16 * 16 + 16) * 4),
]
PATTERNS = {
    "uniform": {},
    "local_global": {"variants": {"local": {"attention": {"window": 5}}}, "cycle": ["local", "local", "base"]},
    "first_is_other": {"variants": {"light": {"attention": {"name": "mla"}}}, "prefix": ["light"]},
    "constant_and_growing": {"variants": {"state": {"attention": "linear"}}, "cycle": ["state", "base"]},
    "last_two": {"variants": {"one": {"attention": "mqa"}, "two": {"attention": "swa"}}, "suffix": ["one", "two"]},
}


@pytest.mark.parametrize(("attention", "pos", "expected"), CACHE_BYTES, ids=str)
def test_sizes_of_a_published_configuration(attention: object, pos: str, expected: int) -> None:
    config = GPTConfig(**PUBLISHED, attention=attention, pos=pos)
    assert config.cache_bytes(1, 128) == expected
    assert config.cache_bytes(3, 128) == 3 * expected
    model = GPTModel(config)
    cache = model.new_cache(1, 128)
    for counts in ([128], [1] * 128, [100, 28]):
        cache.reset()
        feed(model, text(config, 1, 128), cache, counts)
        assert cache.nbytes() == allocated(cache) == expected


@pytest.mark.parametrize("layers", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("attention", entries("attention"))
def test_predicted_bytes_are_allocated_in_every_layer_pattern(attention: str, layers: dict) -> None:
    if "window" in str(layers) and "window" not in vars(entries("attention")[attention].default()):
        layers = PATTERNS["last_two"]  # linear attention has no window to override
    config = GPTConfig(**{**MODEL, "n_layers": 5, "attention": attention, "layers": layers})
    model = GPTModel(config)
    for tokens in (1, 4, 5, 6, 24, 100):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            cache = model.new_cache(2, tokens, dtype)
            assert cache.nbytes() == allocated(cache) == config.cache_bytes(2, tokens, dtype)
    by_layer = [layer.cache_spec(config.dims).nbytes(2, 24, torch.float32) for layer in config.layer_configs]
    assert [layer.nbytes() for layer in model.new_cache(2, 24).layers] == by_layer


@pytest.mark.parametrize("window", [3, 8, 300])
@pytest.mark.parametrize("attention", entries("attention"))
def test_predicted_bytes_of_a_window_for_the_whole_model_are_allocated(attention: str, window: int) -> None:
    """The window of the model limits every layer with rows; a smaller window of a layer still applies."""
    config = GPTConfig(**{**MODEL, "attention": attention})
    model = GPTModel(config)
    cache = model.new_cache(1, 24, window=window)
    anchors = config.layer_configs[0].cache_spec(config.dims).anchors
    assert cache.nbytes() == allocated(cache) == config.cache_bytes(1, min(24, window + anchors))


def expected_bytes(config: GPTConfig, tokens: int) -> int:
    """Return the bytes of one float32 sequence by the definitions, independent of the formulas of the package."""
    total = 0
    for layer in config.layer_configs:
        attention = layer.attention
        head = config.d_model // config.n_heads
        kept = min(tokens, getattr(attention, "window", None) or tokens)
        if attention.name == "sparse":  # bigbird: any earlier block may be drawn
            kept = tokens
        if attention.name == "mla":
            rope = (attention.qk_rope_head_dim or max(2, head // 4 * 2)) if layer.pos.name == "rope" else 0
            total += kept * ((attention.kv_lora_rank or config.d_model // 8) + rope) * 4
        elif attention.name == "shortconv":
            total += config.d_model * 2 * 4
        elif attention.name == "lightning":
            total += config.n_heads * head * head * 4
        elif attention.name in ("gated_delta", "kda"):
            total += (config.n_heads * head * head + 3 * config.d_model * 3) * 4
        elif attention.name == "linear":
            total += config.n_heads * (head * head + head) * 4
        else:
            total += kept * 2 * (attention.n_kv_heads or config.n_heads) * (attention.head_dim or head) * 4
    return total


@pytest.mark.parametrize("pos", ["rope", "none"])
@pytest.mark.parametrize("attention", entries("attention"))
def test_predicted_bytes_equal_the_definitions(attention: str, pos: str) -> None:
    layers = PATTERNS["last_two"]
    config = GPTConfig(**{**MODEL, "n_layers": 4, "attention": attention, "pos": pos, "layers": layers})
    for tokens in (1, 63, 64, 65, 200):
        assert config.cache_bytes(1, tokens) == expected_bytes(config, tokens)


def live_bytes() -> int:
    """Return the bytes of the distinct storages of all tensors that Python can reach, except frozen ones."""
    gc.collect()
    storages = {}
    for candidate in gc.get_objects():
        if type(candidate) in (Tensor, torch.nn.Parameter):
            storages[candidate.untyped_storage().data_ptr()] = candidate.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("attention", entries("attention"))
@torch.no_grad()
def test_only_the_cache_of_a_prompt_stays_in_memory(attention: str) -> None:
    """The prompt is longer than the window; no view of its keys and values is kept."""
    settings = {"name": attention}
    if "window" in entries("attention")[attention].settings:
        settings["window"] = 5
    config = GPTConfig(**{**MODEL, "attention": settings})
    model, ids = GPTModel(config), text(config)
    gc.collect()
    gc.freeze()  # only later tensors count, and the objects of all modules are not visited
    assert live_bytes() == 0
    cache = model.new_cache(len(ids), ids.shape[1])
    model(ids, cache=cache)
    assert live_bytes() == config.cache_bytes(len(ids), ids.shape[1])
    model(ids[:, :1], use_cache=True)  # use_cache keeps only a growing cache
    kept = model._kv_cache
    assert kept is not None
    assert live_bytes() == cache.nbytes() + kept.nbytes()


@pytest.mark.parametrize("attention", entries("attention"))
@torch.no_grad()
def test_a_decoding_step_allocates_no_copy_of_the_cache(attention: str) -> None:
    """The largest tensor of a decoding step is independent of the cached length, except for scores and mask."""
    from tests.model.test_loss import Largest

    sizes = []
    for tokens in (40, 400):
        config = GPTConfig(**{**MODEL, "attention": attention, "pos": "none", "context_length": 512})
        model = GPTModel(config)
        cache = model.new_cache(1, 512)
        model(text(config, 1, tokens), cache=cache)
        model(text(config, 1, 1), cache=cache)
        with Largest(ignored_views(cache)) as largest:
            model(text(config, 1, 1), cache=cache)
        sizes.append(largest.most)
    assert sizes[1] <= sizes[0] + config.n_heads * 400


def ignored_views(cache: object) -> set[torch.Size]:
    """Return the shapes of views of the whole cache or of its used positions."""
    shapes = set()
    for layer in cache.layers:  # type: ignore[attr-defined]
        for tensor in layer.tensors:
            if tensor.ndim == 4:
                b, h, s, n = tensor.shape
                used = min(s, cache.length + 1)  # type: ignore[attr-defined]
                for rows in (s, used):
                    shapes |= {torch.Size((b, h, rows, n)), torch.Size((b, h, n, rows)), torch.Size((b * h, rows, n))}
    return shapes
