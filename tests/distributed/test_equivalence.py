"""Two processes train like one: every component, with accumulation, an odd vocabulary and ragged batches."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTConfig
from modular_gpt.core.errors import ConfigError
from modular_gpt.core.registry import decode, entries
from modular_gpt.distributed import build_parallel
from modular_gpt.runtime.processes import ProcessGroup
from tests.distributed.cases import ragged, steps, table_of
from tests.distributed.pair import Pair
from tests.training.small import ADAMW, MUON, config

EXACT = 5e-6
STEPS, FEWER = 30, 12  # the learning rate schedule ends with step 12
MANY = ("ddp", "fsdp")


def plain(folder: Path, model: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Plain settings, which can be sent to other processes."""
    chosen = {"vocab_size": 259, **(model or {})}
    return config(folder, chosen, **{**ADAMW, "gradient_accumulation": 2, "batch_size": 8, **settings}).to_dict()


def difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def assert_equal(
    pair: Pair,
    settings: dict[str, Any],
    change: Any = None,
    ways: Sequence[str] = MANY,
    averaged: bool = False,
    count: int = FEWER,
) -> None:
    """One process, and two with every strategy: equal losses and nearly equal weights."""
    losses, norms, weights = steps({**settings, "parallel": "none"}, count, change, averaged)
    assert losses[-1] < losses[0] - 0.05
    others = []
    for name in ways:
        both = pair(steps, {**settings, "parallel": name}, count, change, averaged)
        assert both[0][:2] == both[1][:2], f"the processes of {name} disagree"
        assert difference(both[0][0], losses) < EXACT, name
        assert difference(both[0][1], norms) < 20 * EXACT, name
        for key, weight in both[0][2].items():
            assert torch.allclose(weight, weights[key], atol=1e-3), f"{name}: {key}"
        others.append(both[0][0])
    assert all(difference(losses, others[0]) < EXACT for losses in others)


# Each component in a default model; the default of a slot is covered by the models of the other slots.
COMPONENTS = [
    (slot, name)
    for slot in ("attention", "ffn", "norm", "pos")
    for name in entries(slot)
    if slot == "attention" or GPTConfig(**{slot: name}) != GPTConfig()
]


@pytest.mark.parametrize(("slot", "name"), COMPONENTS, ids=lambda value: value)
def test_every_component(slot: str, name: str, pair: Pair, folder: Path) -> None:
    """One block and one micro-batch per step, in a quarter of the time; other tests have several."""
    assert_equal(pair, plain(folder, {slot: name, "n_layers": 1}, gradient_accumulation=1), count=STEPS)


VARIANTS: dict[str, dict[str, Any]] = {
    "untied head": {"tie_embeddings": False},
    "no biases": {"bias": False},
    "experts balanced by a bias": {"ffn": {"name": "moe", "balance": "bias", "bias_step": 0.05, "shared_experts": 1}},
    "sinks and query-key norm": {"attention": {"name": "gqa", "n_kv_heads": 1, "sinks": True, "qk_norm": "rmsnorm"}},
    "sandwich": {"topology": "sandwich"},
    "a convolution": {"attention": {"name": "mha", "conv": 3}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_other_models(name: str, pair: Pair, folder: Path) -> None:
    """Experts count tokens over micro-batches; the others need only one per step."""
    count = 2 if "experts" in name else 1
    assert_equal(pair, plain(folder, VARIANTS[name], gradient_accumulation=count))


@pytest.mark.parametrize("optim", [name for name in entries("optim") if name != "adamw"])
def test_every_optimizer(optim: str, pair: Pair, folder: Path) -> None:
    assert_equal(pair, plain(folder, optim=MUON["optim"] if optim == "muon" else optim))


def test_an_optimizer_that_needs_whole_matrices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = ProcessGroup(0, 2)
    processes.started = True
    monkeypatch.setattr(entries("optim")["adafactor"].component, "supports_sharding", False)
    with pytest.raises(ConfigError, match="optim=adafactor needs full matrices, and parallel=fsdp shards them"):
        build_parallel("fsdp", processes).check_whole(decode("optim", "adafactor"), adapters=False)


def test_the_average_of_the_weights(pair: Pair, folder: Path) -> None:
    assert_equal(pair, plain(folder, ema_decay=0.9, gradient_accumulation=1), averaged=True)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_accumulation(accumulation: int, pair: Pair, folder: Path) -> None:
    assert_equal(pair, plain(folder, gradient_accumulation=accumulation, gradient_clip=0.3))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_every_target_counts_the_same_in_ragged_batches(accumulation: int, pair: Pair, folder: Path) -> None:
    assert_equal(pair, plain(folder, gradient_accumulation=accumulation), ragged)


def test_a_synthetic_task(pair: Pair, folder: Path) -> None:
    task = {"name": "synthetic", "task": "needle", "pairs": 2}
    assert_equal(pair, plain(folder, data=task, gradient_accumulation=1))


@pytest.mark.parametrize("packing", [True, False])
def test_records(packing: bool, pair: Pair, folder: Path) -> None:
    """Rows of whole records with different numbers of targets."""
    rows = [{"prompt": f"{n} + {n} =", "completion": f" {2 * n}"} for n in range(60)]
    (folder / "records.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"name": "records", "path": str(folder / "records.jsonl"), "packing": packing}
    assert_equal(pair, plain(folder, {"context_length": 32}, data=data))


def test_each_process_has_its_own_dropout(pair: Pair, folder: Path) -> None:
    settings = plain(folder, {"dropout": 0.5}, parallel="ddp")
    first, again = pair(steps, settings, 5), pair(steps, settings, 5)
    assert first[0][:2] == again[0][:2]
    alone = steps({**settings, "parallel": "none"}, 5)[0]
    assert difference(first[0][0], alone) > EXACT


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_with_sharded_weights(precision: str, pair: Pair, folder: Path) -> None:
    """Gathered weights in low precision, scaled gradients, and recomputed activations."""
    several = plain(folder, {"ffn": "moe"}, precision=precision, activation_checkpointing=1)
    data = pair(steps, {**several, "parallel": "ddp"}, 10)[0][0]
    for mixed in (False, True):
        way = {"name": "fsdp", "mixed_precision": mixed, "reshard": mixed}
        sharded = pair(steps, {**several, "parallel": way}, 10)[0][0]
        assert sharded == pytest.approx(data, abs=0.03 if mixed else 0.003)
        assert sharded[-1] < sharded[0] - 0.05


@pytest.mark.parametrize(("name", "state"), [("ddp", 1), ("fsdp", 2), ("tensor", 1)])
def test_a_dry_run_estimates_each_process(name: str, state: int, pair: Pair, folder: Path) -> None:
    """ddp and fsdp shard the rows, fsdp also the weights."""
    settings = {**plain(folder, parallel=name), "dry_run": True}
    tables = [dict(line.split("  ", 1) for line in table.splitlines()[1:]) for table in pair(table_of, settings)]
    alone = dict(line.split("  ", 1) for line in table_of({**settings, "parallel": "none"}).splitlines()[1:])
    assert tables[0] == tables[1]
    assert number(alone["optimizer"]) == pytest.approx(state * number(tables[0]["optimizer"]), rel=0.01)
    assert (number(tables[0]["activations"]) < number(alone["activations"])) == (name != "tensor")


def number(cell: str) -> float:
    """The number of KiB in a cell."""
    count, unit = cell.split()
    assert unit == "KiB"
    return float(count)
