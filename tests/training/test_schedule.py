"""Schedules equal their formulas and those of other libraries."""

import itertools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import entries
from modular_gpt.optim import build_schedule

STEPS = 100


def factors(config: Any, steps: int = STEPS) -> list[float]:
    schedule = build_schedule(config, steps)
    return [schedule.factor(step) for step in range(steps)]


@pytest.mark.parametrize("name", entries("schedule"))
def test_every_schedule_warms_up_to_the_peak_and_stays_in_range(name: str) -> None:
    values = factors({"name": name, "warmup": 10})
    assert values[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(values) == 1.0
    assert min(values) >= 0
    assert all(a >= b for a, b in pairwise(values[9:]))
    assert factors({"name": name, "warmup": 0.1}) == values


@pytest.mark.parametrize("name", entries("schedule"))
def test_without_warmup_it_starts_at_the_peak(name: str) -> None:
    assert factors({"name": name, "warmup": 0})[0] == 1.0


@pytest.mark.parametrize(("name", "final"), [("cosine", 0.1), ("cosine", 0.0), ("linear", 0.2), ("wsd", 0.05)])
def test_the_last_update_has_the_final_factor(name: str, final: float) -> None:
    assert factors({"name": name, "final": final})[-1] == pytest.approx(final)


def of_torch(make: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    values = []
    for _ in range(STEPS):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_cosine_equals_torch() -> None:
    expected = of_torch(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS - 1, eta_min=0.1))
    assert factors({"name": "cosine", "warmup": 0, "final": 0.1}) == pytest.approx(expected)


def test_linear_equals_torch() -> None:
    expected = of_torch(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, STEPS - 1))
    assert factors({"name": "linear", "warmup": 0, "final": 0.2}) == pytest.approx(expected)


def test_inverse_square_root_equals_the_paper() -> None:
    """d^-0.5 min(step^-0.5, step warmup^-1.5), with steps from 1, scaled to a peak of 1."""
    paper = [min(step**-0.5, step * 10**-1.5) * math.sqrt(10) for step in range(1, STEPS + 1)]
    assert factors({"name": "inverse_sqrt", "warmup": 10}) == pytest.approx(paper)


def test_wsd_is_constant_and_then_decays() -> None:
    values = factors({"name": "wsd", "warmup": 10, "decay": 0.3, "final": 0.0})
    assert values[9:69] == [1.0] * 60
    assert values[70:] == pytest.approx([(STEPS - 1 - step) / 30 for step in range(70, STEPS)])


@pytest.mark.parametrize("warmup", [0, 10, 0.5])
@pytest.mark.parametrize("decay", [0.01, 0.3, 0.5])
def test_wsd_decays_gradually(warmup: float, decay: float) -> None:
    """After the warmup no step decays by more than its share."""
    values = factors({"name": "wsd", "warmup": warmup, "decay": decay, "final": 0.0})
    falls = [before - after for before, after in itertools.pairwise(values)]
    assert max(falls) <= 1 / max(1, round(decay * STEPS)) + 1e-9


def test_one_step_is_enough() -> None:
    for name in entries("schedule"):
        assert factors(name, 1) == [pytest.approx(factors(name, 1)[0])]
        assert 0 <= factors(name, 1)[0] <= 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("cosin", "did you mean 'cosine'"),
        ({"name": "cosine", "warmpu": 1}, "did you mean 'warmup'"),
        ({"name": "cosine", "warmup": -1}, "schedule.warmup must be 0 or more"),
        ({"name": "cosine", "warmup": 101}, "schedule.warmup=101 steps are more than trainer.max_steps=100"),
        ({"name": "cosine", "final": 2.0}, "schedule.final must lie in"),
        ({"name": "wsd", "decay": 0.0}, "schedule.decay must lie in"),
        ({"name": "wsd", "warmup": 0.5, "decay": 0.8}, "overlap: make one of them shorter"),
        ({"name": "wsd", "warmup": 10, "decay": 0.91}, "overlap"),
        ({"name": "linear", "final": "low"}, "schedule.final must be a number"),
    ],
    ids=str,
)
def test_invalid_schedules_are_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedule(config, STEPS)
