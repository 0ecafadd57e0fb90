"""A non-finite value in one of two processes: both skip the update with the same message."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.cases import broken_down, poisoned_steps
from tests.distributed.pair import Pair
from tests.training.small import config

MANY = ("ddp", "fsdp")
CAUSES = {
    "loss": "the loss is not finite",
    "gradient": "the gradient of blocks.1.ffn_norm.bias is not finite",
    "output": "the output of blocks.0.attention.value (Linear) is not finite",
}


def plain(folder: Path, name: str) -> dict[str, Any]:
    return config(folder, parallel=name, gradient_accumulation=2).to_dict()


@pytest.mark.parametrize("name", MANY)
@pytest.mark.parametrize("place", CAUSES)
def test_both_skip_the_update(place: str, name: str, pair: Pair, folder: Path) -> None:
    """Each value in each process, in turn, in one training."""
    poisonings = [(place, value, rank) for value in (math.nan, math.inf) for rank in (0, 1)]
    first, second = pair(poisoned_steps, plain(folder, name), *poisonings)
    assert first == second
    changed, causes, skipped, finite = first
    assert changed == [True, *(False, True) * 4]
    assert causes == ["", *(CAUSES[place], "") * 4]
    assert skipped == 4
    assert finite


@pytest.mark.parametrize("name", MANY)
def test_a_large_but_finite_gradient_of_one_process_is_used(name: str, pair: Pair, folder: Path) -> None:
    first, second = pair(poisoned_steps, plain(folder, name), ("gradient", 1e12, 1))
    assert first == second == ([True] * 3, [""] * 3, 0, True)


@pytest.mark.parametrize("name", MANY)
def test_both_give_up_together(name: str, pair: Pair, folder: Path) -> None:
    first, second = pair(broken_down, plain(folder, name), "output", math.nan, 1, set(range(20)))
    assert "no finite gradient in the last 10 steps, up to step 9 (the output of blocks.0.attention.value" in first
    assert second == f"process 1: {first}" or second == first
