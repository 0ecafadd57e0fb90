"""Decoding speed of each variant by the number of tokens in its cache, beside the bound that memory sets."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from modular_gpt.comparison.budget import gpt_config
from modular_gpt.comparison.plan import Plan
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.errors import UserError
from modular_gpt.core.json_files import load_json
from modular_gpt.model import GPTModel

DECODING = "decoding.json"
CONTEXTS, STEPS, CHUNK = (
    (128, 512, 2048),
    12,
    512,
)  # tokens in the cache; steps that are timed; tokens of a prompt chunk
WITHIN = 2.0  # factor between measurement and bound within which the bound is shown
BUFFER, COPIES = 2**23, 4  # floats of a copy that measures the memory, and number of copies


@dataclass(frozen=True)
class DecodingSpeed:
    """Tokens per second with ``tokens`` in the cache, of one text; bound: by reading weights and cache once a token."""

    tokens: int
    measured: float
    bound: float

    @property
    def is_bound(self) -> bool:
        """Whether memory explains the speed, to a factor of two."""
        return 1 / WITHIN < self.measured / self.bound < WITHIN


def measure_decoding(plan: Plan, directory: Path) -> dict[str, list[DecodingSpeed]]:
    """Measure all variants on the CPU with their initial weights, and write decoding.json."""
    bandwidth = memory_bandwidth()
    speeds = {name: decoding_speeds(GPTModel(gpt_config(run, plan.vocab_size)), bandwidth)
              for name, run in plan.variants.items()}  # fmt: skip
    write_text(
        directory / DECODING, json.dumps({name: [asdict(item) for item in items] for name, items in speeds.items()})
    )
    return speeds


def load_decoding(path: Path) -> dict[str, list[DecodingSpeed]]:
    """The measurements in decoding.json; empty if there are none."""
    found = load_json(path) if path.is_file() else {}
    return {name: [DecodingSpeed(**item) for item in items] for name, items in found.items()}


def memory_bandwidth() -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.zeros(BUFFER)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(COPIES):
        begun = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best


@torch.no_grad()
def decoding_speeds(model: GPTModel, bandwidth: float) -> list[DecodingSpeed]:
    """The speed for each number of tokens; those that the positions cannot reach are left out."""
    model.eval()
    weights, found = sum(parameter.nbytes for parameter in model.parameters()), []
    for tokens in CONTEXTS:
        try:
            seconds = step_time(model, tokens)
        except UserError:  # learned positions end at the context
            break
        found.append(DecodingSpeed(tokens, 1 / seconds, bandwidth / (weights + model.config.cache_bytes(1, tokens))))
    return found


def step_time(model: GPTModel, tokens: int) -> float:
    """Seconds of one step with ``tokens`` in the cache, the median."""
    cache = model.new_cache(1, tokens + STEPS + 1)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    for chunk in ids.split(CHUNK, 1):
        model(chunk, cache=cache, last_only=True)
    times = []
    for _ in range(STEPS + 1):
        begun = time.perf_counter()
        model(ids[:, :1], cache=cache)
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[STEPS // 2]
