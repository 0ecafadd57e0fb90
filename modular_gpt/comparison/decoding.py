"""Decoding speed of each variant by the number of tokens in its cache, and the bound by memory bandwidth."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from modular_gpt.comparison.budget import gpt_config
from modular_gpt.comparison.plan import Plan
from modular_gpt.core.atomic_files import write_text
from modular_gpt.core.json_files import load_json
from modular_gpt.model import GPTModel
from modular_gpt.runtime.timing import Timed, copy_bandwidth, interleave

DECODING = "decoding.json"
CONTEXTS = (128, 512, 2048)  # tokens in the cache
STEPS, CHUNK = 12, 512  # steps that are timed; tokens of a prompt that are read at once
WITHIN = 2.0  # largest ratio of bound and measurement at which the bound is shown
COPIED_MEBIBYTES = 32  # size of a copy that measures the memory bandwidth


@dataclass(frozen=True)
class DecodingSpeed:
    """Tokens per second with ``tokens`` in the cache, of one text; bound: by reading weights and cache once a token."""

    tokens: int
    measured: float
    bound: float

    @property
    def is_bound(self) -> bool:
        """Whether the speed is within a factor of ``WITHIN`` of the bound by memory bandwidth."""
        return 1 / WITHIN < self.measured / self.bound < WITHIN


def measure_decoding(plan: Plan, directory: Path) -> dict[str, list[DecodingSpeed]]:
    """Measure all variants on the CPU with their initial weights, interleaved, and write decoding.json."""
    bandwidth = copy_bandwidth(torch.device("cpu"), COPIED_MEBIBYTES)
    models = {name: GPTModel(gpt_config(run, plan.vocab_size)).eval() for name, run in plan.variants.items()}
    speeds: dict[str, list[DecodingSpeed]] = {name: [] for name in models}
    for tokens in CONTEXTS:
        for name, seconds in step_times(models, tokens).items():
            speeds[name].append(DecodingSpeed(tokens, 1 / seconds, bandwidth / bytes_read(models[name], tokens)))
    write_text(
        directory / DECODING, json.dumps({name: [asdict(item) for item in items] for name, items in speeds.items()})
    )
    return speeds


def load_decoding(path: Path) -> dict[str, list[DecodingSpeed]]:
    """The measurements in decoding.json; empty if there are none."""
    found = load_json(path) if path.is_file() else {}
    return {name: [DecodingSpeed(**item) for item in items] for name, items in found.items()}


def bytes_read(model: GPTModel, tokens: int) -> int:
    """Bytes of the weights and of the cache, the least that a step with ``tokens`` in the cache reads."""
    return sum(parameter.nbytes for parameter in model.parameters()) + model.config.cache_bytes(1, tokens)


@torch.no_grad()
def step_times(models: Mapping[str, GPTModel], tokens: int) -> dict[str, float]:
    """Median seconds of a step of each model with ``tokens`` in its cache.

    Models whose positions do not reach that far are left out.
    """
    steps = [Timed(name, decoding_step(model, tokens), 1) for name, model in models.items() if reaches(model, tokens)]
    interleave(steps, STEPS)
    return {step.name: step.median for step in steps}


def reaches(model: GPTModel, tokens: int) -> bool:
    """Whether the positions of a model reach as far as the last timed step."""
    return model.config.pos.component.extrapolates or tokens + STEPS + 1 <= model.config.context_length


def decoding_step(model: GPTModel, tokens: int) -> Callable[[], object]:
    """A function that decodes one more token after ``tokens``, up to ``STEPS`` + 1 times."""
    cache = model.new_cache(1, tokens + STEPS + 1)
    ids = torch.zeros(1, tokens, dtype=torch.long)
    for chunk in ids.split(CHUNK, 1):
        model(chunk, cache=cache, last_only=True)
    return lambda: model(ids[:, :1], cache=cache)
