"""Costs of a decoding step: no copy of the cache, and no synchronisation of host and device."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modular_gpt.generation import Generation, GenerationConfig
from tests.generation.models import ATTENTIONS, prompts, tiny


class Watch(TorchDispatchMode):
    """Counts operator calls and the bytes of new storage that they return."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.allocated += tensor.untyped_storage().nbytes()
        return result


@torch.no_grad()
def allocated_by_one_token(model: Any, length: int, padding: Tensor | None) -> int:
    cache, ids = model.new_cache(2, max_length=600), prompts(2, length)
    model(ids, cache=cache, padding=padding)
    with Watch() as watch:
        model(ids[:, :1], cache=cache)
    return watch.allocated


LARGE = {"mla": {"name": "mla", "kv_lora_rank": 64}, "sinks": {"name": "mha", "sinks": True}}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pos", ["rope", "alibi"])
@pytest.mark.parametrize("attention", [*ATTENTIONS, "sinks"])
def test_a_token_copies_no_cache(attention: str, pos: str, padded: bool) -> None:
    """Only scores and a mask grow with the text, never copies of keys or values."""
    if (attention, pos) == ("linear", "alibi"):
        pytest.skip("linear attention has no score matrix for alibi")
    settings = LARGE.get(attention) or ATTENTIONS[attention]
    model = tiny(settings, pos, d_model=256, context_length=600)
    padding = torch.tensor([3, 0]) if padded else None
    short, long = (allocated_by_one_token(model, length, padding) for length in (100, 500))
    growth = (long - short) / 400
    if settings.get("window") or attention == "linear":
        assert growth == 0
    else:
        a_layer = model.config.cache_bytes(2, 1) / model.config.n_layers
        scores = 2 * 4 * torch.float32.itemsize  # rows, heads
        assert growth <= 15 * scores < a_layer


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"greedy": True},
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.1, "no_repeat_ngram": 2, "logit_bias": {3: -2.0}},
        {"logprobs": True},
    ],
)
def test_without_stops_the_host_synchronises_only_for_the_check_of_finite_logits(
    settings: dict[str, Any], padded: bool
) -> None:
    padding = torch.tensor([2, 0]) if padded else None
    run = Generation(tiny(), prompts(), GenerationConfig(max_new_tokens=30, seed=None, **settings), padding=padding)
    run._sampler._every = 16  # the value of accelerators
    steps = iter(run)
    next(steps)  # the first step draws a seed on the host
    with Watch() as watch:
        assert sum(1 for _ in steps) == 29
    assert watch.calls["_local_scalar_dense"] == 1


def test_stop_tokens_are_checked_periodically() -> None:
    run = Generation(tiny(), prompts(), GenerationConfig(max_new_tokens=40, greedy=True, stop_tokens=[12]))
    run.stops._every = run._sampler._every = 16  # the value of accelerators
    with Watch() as watch:
        count = sum(1 for _ in run)
    assert watch.calls["_local_scalar_dense"] <= count // 16 + -(-count // 16)  # all stopped, logits finite


def test_a_speculative_round_synchronises_once() -> None:
    from tests.generation.test_speculative import nearly

    model = tiny()
    settings = GenerationConfig(max_new_tokens=40, seed=0, strategy="speculative")
    run = Generation(model, prompts(), settings, draft=nearly(model))
    run._sampler._every = 10**9  # only the first logits are checked
    with Watch() as watch:
        run.finish()
    assert watch.calls["_local_scalar_dense"] == run.draft_counts.rounds + 1
