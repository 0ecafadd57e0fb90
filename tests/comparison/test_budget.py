"""Budgets are equal within one percent or refused, and FLOPs equal those of PyTorch's counter."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.comparison.budget import nearest, training_flops
from modular_gpt.comparison.pilot import step_seconds
from modular_gpt.comparison.plan import Plan
from modular_gpt.core.registry import entries
from tests.comparison.small import comparison, run


def plan(folder: Path, budget: str, first: dict, second: dict, **settings: object) -> Plan:
    return comparison(folder, {"a": run(folder, **first), "b": run(folder, **second)}, budget=budget, **settings).plan


@pytest.mark.parametrize(
    ("attention", "ffn"), [("mla", "mlp"), ("linear", "swiglu"), *(("mqa", ffn) for ffn in entries("ffn"))]
)
def test_parameters_are_equal_within_one_percent(attention: str, ffn: str, tmp_path: Path) -> None:
    size = {"d_model": 96}  # wide enough for one percent steps of an expert's width
    found = plan(tmp_path, "params", size, {**size, "attention": attention, "ffn": ffn})
    one, other = (found.costs[name].parameters for name in "ab")
    assert abs(other / one - 1) <= 0.01
    assert found.costs["a"].tokens == found.costs["b"].tokens


def test_parameters_that_cannot_be_made_equal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no ffn.hidden gives b the [\d,]+ parameters of the baseline within 1%"):
        plan(tmp_path, "params", {}, {"n_layers": 12})


def test_variants_that_the_budget_makes_equal_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="differ only in settings that the budget makes equal"):
        plan(tmp_path, "params", {"ffn": {"name": "mlp", "hidden": 64}}, {"ffn": {"name": "mlp", "hidden": 32}})


def test_the_number_of_steps_equalises_flops(tmp_path: Path) -> None:
    trainer = {"max_steps": 400}
    variants = {"a": run(tmp_path, trainer), "b": run(tmp_path, trainer, n_layers=3)}
    found = comparison(tmp_path, variants, budget="flops").plan.costs
    assert found["b"].flops == pytest.approx(found["a"].flops, rel=0.01)
    assert found["b"].steps < found["a"].steps


def test_too_few_steps_for_equal_flops_are_refused(tmp_path: Path) -> None:
    trainer = {"max_steps": 3}
    with pytest.raises(ConfigError, match=r"whole steps do not come within 1%: raise trainer.max_steps"):
        comparison(tmp_path, {"a": run(tmp_path, trainer), "b": run(tmp_path, trainer, n_layers=2)}, budget="flops")


def test_tokens_are_equal_for_every_batch_size(tmp_path: Path) -> None:
    variants = {"a": run(tmp_path), "b": run(tmp_path, {"batch_size": 8})}
    found = comparison(tmp_path, variants).plan.costs
    assert found["a"].tokens == found["b"].tokens and found["b"].steps == found["a"].steps // 2


def test_time_sets_the_number_of_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modular_gpt.comparison.plan.step_seconds", lambda runs: {"a": 0.1, "b": 0.2})
    found = plan(tmp_path, "time", {}, {"attention": "mla"})
    assert (found.costs["a"].steps, found.costs["b"].steps) == (8, 4)


def test_the_pilot_measures_every_variant(tmp_path: Path) -> None:
    found = plan(tmp_path, "tokens", {}, {"attention": "mla"})
    assert all(seconds > 0 for seconds in step_seconds(found.variants).values())


def test_a_budget_is_required(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a comparison needs a budget.*tokens, params, flops, time, target_loss"):
        comparison(tmp_path, {"a": run(tmp_path), "b": run(tmp_path)}, budget=None)


def test_a_target_belongs_to_its_budget(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give target=<nats per token>"):
        plan(tmp_path, "target_loss", {}, {})
    with pytest.raises(ConfigError, match="is for budget=target_loss"):
        plan(tmp_path, "tokens", {}, {}, target=2.0)


@pytest.mark.parametrize(("wanted", "found"), [(1, 1), (9, 3), (12, 3), (13, 4), (10**6, 1000)])
def test_the_nearest_whole_number(wanted: int, found: int) -> None:
    assert nearest(lambda value: value * value, wanted) == found


SIZE = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": 32}


def counted(config: GPTConfig) -> float:
    """FLOPs per token of a training step by PyTorch's counter, where every query attends to every key."""
    with torch.device("meta"):
        model, ids = GPTModel(config), torch.zeros(1, config.context_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids).loss.backward()
    return counter.get_total_flops() / config.context_length


@pytest.mark.parametrize("attention", ["mha", "gqa", "mqa", "mla"])
def test_flops_equal_the_counter_minus_the_keys_after_each_query(attention: str) -> None:
    config = GPTConfig(**SIZE, attention=attention)
    (layer, _), context = config.layer_configs, config.context_length
    scores = layer.attention_class.score_flops(layer.attention, config.dims, layer.position_class)
    unseen = context - (context + 1) / 2  # keys after a query, on average
    training = 3  # the backward pass takes twice the forward pass
    assert training_flops(config) == pytest.approx(counted(config) - training * config.n_layers * unseen * scores)


def test_flops_without_scores_equal_the_counter() -> None:
    config = GPTConfig(**SIZE, attention="linear")
    assert training_flops(config) == counted(config)


def test_a_window_lowers_the_flops() -> None:
    flops = {
        window: training_flops(GPTConfig(**SIZE, attention={"name": "swa", "window": window})) for window in (4, 32)
    }
    layer = GPTConfig(**SIZE, attention="swa").layer_configs[0]
    scores = layer.attention_class.score_flops(layer.attention, GPTConfig(**SIZE).dims, layer.position_class)
    keys = {4: (1 + 2 + 3 + 29 * 4) / 32, 32: 33 / 2}  # average number of keys per query
    assert flops[32] - flops[4] == pytest.approx(3 * 2 * scores * (keys[32] - keys[4]))
