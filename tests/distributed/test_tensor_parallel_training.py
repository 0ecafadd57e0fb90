"""Heads and hidden units sharded between two processes: losses and weights equal those of one process."""

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.cases import ragged, refusal, steps, whole_run
from tests.distributed.pair import Pair
from tests.distributed.test_equivalence import COMPONENTS, VARIANTS, assert_equal, plain
from tests.training.small import ADAMW, MUON, config


def assert_divided(pair: Pair, settings: dict[str, Any], change: Any = None) -> None:
    assert_equal(pair, settings, change, ways=("tensor",))


DIVIDED = [(slot, name) for slot, name in COMPONENTS if slot in ("attention", "ffn") and name != "mqa"]


@pytest.mark.parametrize(("slot", "name"), DIVIDED, ids=lambda value: value)
def test_every_component(slot: str, name: str, pair: Pair, folder: Path) -> None:
    """One block and one micro-batch per step, in a quarter of the time; other tests have several."""
    assert_divided(pair, plain(folder, {slot: name, "n_heads": 4, "n_layers": 1}, gradient_accumulation=1))


SINKS = {"attention": {"name": "gqa", "sinks": True, "qk_norm": "rmsnorm"}, "pos": "alibi", "n_heads": 4}


def test_parameters_of_single_heads(pair: Pair, folder: Path) -> None:
    assert_divided(pair, plain(folder, SINKS, ema_decay=0.9))


def test_ragged_batches(pair: Pair, folder: Path) -> None:
    assert_divided(pair, plain(folder, VARIANTS["no biases"], activation_checkpointing=1), ragged)


def test_muon(pair: Pair, folder: Path) -> None:
    """It orthogonalises in bf16, which amplifies rounding differences of gradients."""
    settings = plain(folder, **MUON)
    alone, both = steps({**settings, "parallel": "none"}, 10)[0], pair(steps, {**settings, "parallel": "tensor"}, 10)
    assert both[0][0] == both[1][0] == pytest.approx(alone, abs=2e-4)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"attention": "mqa"}, "n_kv_heads=1 does not divide into 2 processes"),
        ({"n_heads": 1}, "n_heads=1 does not divide into 2 processes"),
        ({"ffn": {"name": "mlp", "hidden": 33}}, "ffn.hidden=33 does not divide into 2 processes"),
        ({"ffn": {"name": "moe", "n_experts": 3}}, "ffn.n_experts=3 does not divide into 2 processes"),
        (
            {"ffn": {"name": "moe", "shared_experts": 1, "shared_hidden": 33}},
            "ffn.shared_hidden=33 does not divide into 2 processes",
        ),
        (
            {"attention": {"name": "gated_delta", "value_heads": 4, "key_heads": 1}},
            "attention.key_heads=1 does not divide into 2 processes",
        ),
    ],
)
def test_indivisible_sizes_are_refused(model: dict[str, Any], sentence: str, pair: Pair, folder: Path) -> None:
    first, _ = pair(refusal, plain(folder, model, parallel="tensor"))
    assert first.startswith(sentence)


def test_a_run_resumes_in_one_process_and_back(pair: Pair, folder: Path) -> None:
    """With samples, which use caches, and sharded checkpoints."""
    same = {**ADAMW, "max_steps": 12, "log_interval": 1, "eval_interval": 4, "sample_tokens": 4}
    _, _, losses = whole_run(config(folder, runs=str(folder / "whole"), **same).to_dict())
    settings = config(folder, runs=str(folder / "runs"), **same).to_dict()
    sharded = {"name": "tensor", "sharded_checkpoints": True}
    directory = pair(whole_run, {**settings, "parallel": sharded}, 4)[0][0]
    whole_run({**settings, "parallel": "none", "resume": directory}, 8)
    _, _, found = pair(whole_run, {**settings, "parallel": "tensor", "resume": directory})[0]
    assert found.keys() == losses.keys()
    assert max(abs(found[step] - losses[step]) for step in losses) < 5e-6
    assert (Path(directory) / "samples.txt").read_text().count("=== step ") == 3
