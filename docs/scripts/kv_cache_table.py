"""Bytes of the cache of each attention: predicted from the config, allocated, and measured by PyTorch's profiler.

The sizes are sums over four layers, for one sequence in float32. tables.py writes the table into docs/kv_cache.md.
"""

from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from modular_gpt import GPTConfig, GPTModel

SIZES: dict[str, Any] = {"vocab_size": 65, "d_model": 128, "n_heads": 8, "n_layers": 4, "context_length": 1024}
LENGTHS = (64, 256, 1024)
WINDOW = {"window": 128}
ATTENTIONS: dict[str, dict[str, Any]] = {
    "mha": {"attention": "mha"},
    "gqa, 2 key/value heads": {"attention": {"name": "gqa", "n_kv_heads": 2}},
    "mqa": {"attention": "mqa"},
    "swa, window 128": {"attention": {"name": "swa", **WINDOW}},
    "mla, latent 16, rope 8": {"attention": {"name": "mla", "kv_lora_rank": 16, "qk_rope_head_dim": 8}},
    "mla with window 128": {"attention": {"name": "mla", "kv_lora_rank": 16, "qk_rope_head_dim": 8, **WINDOW}},
    "sparse, streaming, window 128": {"attention": {"name": "sparse", "pattern": "streaming", **WINDOW}},
    "linear": {"attention": "linear"},
    "gated_delta": {"attention": "gated_delta"},
    "mha, 3 of 4 layers with window 128": {
        "attention": "mha",
        "layers": {"variants": {"local": {"attention": WINDOW}}, "cycle": ["local", "local", "local", "base"]},
    },
}


def cache_sizes(settings: dict[str, Any], length: int) -> tuple[int, int, int]:
    """Return the bytes for one sequence of ``length`` tokens: predicted, allocated, measured."""
    config = GPTConfig(**SIZES, pos="rope", **settings)
    model = GPTModel(config).eval()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kv_cache = model.new_cache(batch=1, max_length=length)
    measured = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    with torch.no_grad():  # a prompt and a decoding step fill the cache and must not enlarge it
        model(torch.zeros(1, length - 1, dtype=torch.long), cache=kv_cache, last_only=True)
        model(torch.zeros(1, 1, dtype=torch.long), cache=kv_cache)
    return config.cache_bytes(batch=1, tokens=length), kv_cache.nbytes(), measured


@cache
def rows() -> list[list[str]]:
    return [
        [name, f"{length:,}", *(f"{number:,}" for number in cache_sizes(settings, length))]
        for name, settings in ATTENTIONS.items()
        for length in LENGTHS
    ]


HEAD = ["attention", "tokens", "predicted", "allocated", "measured"]
