"""A run that was stopped anywhere ends like one that was not, to the last bit."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.core.errors import CheckpointError, ConfigError, DataError
from modular_gpt.training import load_config
from tests.training.small import assert_same_ending, config, run, stop_after, trainer_of

STEPS = 12
KINDS = {
    "plain": ({}, {}),
    "accumulation": ({}, {"gradient_accumulation": 4}),
    "dropout": ({"dropout": 0.1}, {"gradient_accumulation": 2}),
    "epochs": ({}, {"order": "epoch", "batch_size": 32}),
    "moe": ({"ffn": {"name": "moe", "balance": "bias", "n_experts": 4}}, {}),
    "muon": ({}, {"optim": "muon"}),
    "adafactor": ({}, {"optim": "adafactor"}),
}


def stop_and_go(folder: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int], **settings: Any) -> Path:
    """A run that is stopped after each of some steps and resumed."""
    resume = None
    for step in [*stops, None]:
        with monkeypatch.context() as patch:
            if step is not None:
                stop_after(patch, step)
            result = run(config(folder, resume=resume, **settings))
        resume = str(result.directory)
        assert (result.signal is None) == (step is None)
    return result.directory


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_at_any_step(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = KINDS[kind]
    whole = run(config(folder, model, **settings)).directory
    for step in range(1, STEPS):
        assert_same_ending(whole, stop_and_go(folder, monkeypatch, [step], model=model, **settings))
