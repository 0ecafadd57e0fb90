"""What each attention kind caches: predicted from the config, allocated as storages, measured at PyTorch's allocator.

All four layers' caches together, one text, float32. tables.py writes the table into docs/kv_cache.md.
"""

from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from modular_gpt import GPTConfig, GPTModel

SIZES: dict[str, Any] = {"vocab_size": 65, "d_model": 128, "n_heads": 8, "n_layers": 4, "context_length": 1024}
LENGTHS = (64, 256, 1024)
WINDOW = {"window": 128}
KINDS: dict[str, dict[str, Any]] = {
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


def figures(settings: dict[str, Any], length: int) -> tuple[int, int, int]:
    """Bytes for one text of ``length`` tokens: predicted, allocated, measured."""
    config = GPTConfig(**SIZES, pos="rope", **settings)
    model = GPTModel(config).eval()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = model.new_cache(batch=1, max_length=length)
    measured = sum(event.self_cpu_memory_usage for event in profiled.key_averages())
    with torch.no_grad():  # filled by a prompt and a step, it is as large as it was
        model(torch.zeros(1, length - 1, dtype=torch.long), cache=kept, last_only=True)
        model(torch.zeros(1, 1, dtype=torch.long), cache=kept)
    return config.cache_bytes(batch=1, tokens=length), kept.nbytes(), measured


@cache
def rows() -> list[list[str]]:
    return [
        [name, f"{length:,}", *(f"{number:,}" for number in figures(settings, length))]
        for name, settings in KINDS.items()
        for length in LENGTHS
    ]


HEAD = ["attention", "tokens", "predicted", "allocated", "measured"]
