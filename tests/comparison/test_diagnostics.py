"""Task results follow from the architecture, and --quick reports them with the probes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.cli import compare as command
from modular_gpt.cli import evaluate, train
from modular_gpt.comparison import Comparison, diagnostics
from modular_gpt.comparison.diagnostics import PROBES, Check, QuickResult, Recipe, recall, staircase
from modular_gpt.comparison.diagnostics.probes import dependencies, reach
from modular_gpt.comparison.diagnostics.quick import diagnosed, learned
from modular_gpt.comparison.diagnostics.tasks import flat_beyond, visible_pairs
from tests.comparison.small import comparison, run

WINDOW: dict[str, Any] = {"name": "swa", "window": 5}
MODEL: dict[str, Any] = dict(vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=24)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(("layers", "window"), [(1, 7), (1, 8), (2, 4), (2, 5)])
def test_a_lag_is_learned_exactly_within_the_receptive_field(layers: int, window: int) -> None:
    """Ids beyond the receptive field are independent of those within it: 1 / 32 of them are guessed."""
    task = staircase({"name": "swa", "window": window}, layers)
    solvable = layers * (window - 1) >= 7
    assert (task.lowest, task.highest) == ((0.99, None) if solvable else (None, pytest.approx(1 / 32 + 0.03)))
    if layers == 1:  # two layers take longer: benchmarks/diagnostics.py
        found = replace(task, recipe=replace(task.recipe, steps=120)).learn()
        assert task.right(found.accuracy) and (found.accuracy > 0.99) == solvable


def test_recall_is_bounded_by_the_window() -> None:
    assert visible_pairs(31, 8) == pytest.approx(0.5208, abs=1e-4)
    assert visible_pairs(63, 8) == 1.0
    task = recall({"name": "swa", "window": 32})
    assert task is not None and task.highest == pytest.approx(0.521 + 0.03, abs=0.01)
    full, linear = recall("mha"), recall("linear")
    assert full is not None and linear is not None and (full.lowest, linear.lowest) == (0.99, None)
    assert full.model.attention.conv == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"attention": {"name": "swa", "window": 5}}, 8),
        ({"attention": {"name": "swa", "window": 1}}, 0),
        ({"attention": {"name": "swa", "window": 4, "conv": 3}}, 10),
        ({"attention": "mha"}, 2 * 24),
        ({"attention": "sparse"}, None),
        ({"attention": "mha", "layers": {"variants": {"x": {"attention": {"window": 3}}}, "cycle": ["x"]}}, 4),
    ],
)
def test_reach(settings: dict[str, Any], expected: int | None) -> None:
    assert reach(GPTConfig(**{**MODEL, **settings})) == expected


def test_dependencies_equal_those_of_single_changes() -> None:
    """Changing one token at a time gives the same matrix."""
    torch.manual_seed(0)
    model = GPTModel(GPTConfig(**{**MODEL, "attention": {"name": "swa", "window": 3}})).eval().double()
    seen, ids = dependencies(model, 9), torch.arange(9)[None]
    with torch.no_grad():
        for place in range(9):
            other = ids.clone()
            other[0, place] += 12
            assert torch.equal((model(other) - model(ids)).abs().amax(-1)[0] > 0, seen[:, place])


def test_probes_leave_the_model_unchanged() -> None:
    model = GPTModel(GPTConfig(**{**MODEL, "ffn": {"name": "moe", "balance": "bias"}, "dropout": 0.2})).train()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for probe in PROBES.values():
        probe(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_table_names_contradictions() -> None:
    checks = [
        Check("mha", "receptive field", "all", "all", True, 0.1),
        Check("toy", "receptive field", "5 tokens back", "4 tokens back", False, 0.2),
        Check("toy", "D2 recall", "0.40", "", None, 3.0),
    ]
    result = QuickResult(checks)
    assert not result.passed and result.failures == [checks[1]]
    lines = result.table.splitlines()
    assert lines[0].split() == ["mha", "toy"] and "WRONG: 5 tokens back" in lines[2]
    assert lines[3].split()[-2:] == ["-", "0.40"] and lines[4].split() == ["seconds", "0.1", "3.2"]
    assert lines[-1] == "toy: receptive field: 5 tokens back, expected 4 tokens back"
    assert json.loads(json.dumps(result.to_dict()))["checks"][1]["passed"] is False


def test_quick_runs_on_names_and_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in ("STAIRCASE", "QUICK_RECALL"):
        monkeypatch.setattr(f"modular_gpt.comparison.diagnostics.tasks.{recipe}", Recipe(steps=60))
    small = GPTConfig(**{**MODEL, "attention": {"name": "swa", "window": 6}})
    result = diagnostics.run({"short": small})
    assert result.passed and result.variants == ["short"]
    found = {check.name: check.found for check in result.checks}
    assert found["receptive field"] == "10 tokens back" and float(found["D1 lag 8 in 1 layer"]) < 0.07
    assert {"every parameter gets a gradient", "cache of 1,024 tokens", "D2 recall of 4 pairs"} <= found.keys()
    with pytest.raises(ConfigError, match="names of attentions or a mapping of variants, got 'mha'"):
        diagnostics.run("mha")


@pytest.fixture
def short_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text("the cat sat on a mat; it was fat. " * 4000)
    tasks = "modular_gpt.comparison.diagnostics.tasks"
    for recipe in ("STAIRCASE", "RECALL", "QUICK_RECALL", "TEXT_RECIPE"):
        monkeypatch.setattr(f"{tasks}.{recipe}", Recipe(steps=2, batch_size=8))
    monkeypatch.setattr(f"{tasks}.TEXT", {"name": "text", "path": str(text)})


def test_the_tasks_of_a_report(short_recipes: None) -> None:
    """After two steps only tasks at chance level match their expectation; learnable tasks do not."""
    checks = {check.name: check for check in diagnosed("w", GPTConfig(**{**MODEL, "attention": WINDOW}))}
    expected = {
        "D1 lag 8 in 1 layer": ("at most 0.061", True),
        "D1 lag 8 in 2 layers": ("at least 0.990", False),
        "D2 recall of 8 pairs": ("at most 0.061", True),
        "D4 recall of 16 pairs": ("at most 0.057", True),
        "D5 rise of the loss from 64 to 256 tokens": ("at most 0.050", True),
    }
    assert {name: (check.expected, check.passed) for name, check in checks.items()} == expected
    assert all(check.trained and check.seconds > 0 for check in checks.values())


@pytest.mark.parametrize(
    ("attention", "settings", "flat"),
    [("mha", {}, False), (WINDOW, {}, True), (WINDOW, {"pos": "learned"}, None), ("gated_delta", {}, False)],
)
def test_longer_rows_do_not_raise_the_loss_of_windowed_attention(
    attention: Any, settings: dict[str, Any], flat: bool | None
) -> None:
    assert flat_beyond(attention, **settings) is flat


def test_a_comparison_learns_tasks_once(tmp_path: Path, short_recipes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {name: run(tmp_path, attention=name) for name in ("mha", "gqa")}
    first = comparison(tmp_path, variants, diagnostics="learned", seeds=1, decoding=False, pages=False)
    first.run()
    monkeypatch.setattr("modular_gpt.comparison.checks.diagnosed", lambda name, config: learned(name, config))
    first.look_closer()
    tasks = (first.directory / "diagnostics.json").read_text()
    result = first.result()
    assert result.learned_tasks and "D2 recall of 4 pairs" in result.save_report().read_text()
    again = Comparison.resumed(str(first.directory), say=lambda text: None)
    assert again.plan.config.diagnostics == "learned"
    again.look_closer()
    assert (first.directory / "diagnostics.json").read_text() == tasks  # with the same times
    with pytest.raises(ConfigError, match="diagnostics: no choice 'all'; there are: learned, probes"):
        comparison(tmp_path, variants, diagnostics="all")


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modular_gpt.comparison.diagnostics.quick.tasks_of", lambda config: [])
    assert command.main(["--quick", "attention=gqa,linear"]) == 0
    head, *lines = [line for line in capsys.readouterr().out.splitlines() if "probes and" not in line]
    assert head.split() == ["gqa", "linear"]
    assert any(line.startswith("receptive field") and "all earlier tokens" in line for line in lines)
    for refused in (["--quick", "attention=gqa", "seeds=3"], ["--quick", "attention=gqa", "budget=params"]):
        assert command.main(refused) == 2
        assert "has no effect with --quick" in capsys.readouterr().err
    assert command.main(["--quick", "attention=gqa,linear", "--cfg", "job"]) == 0
    listed = yaml.safe_load(capsys.readouterr().out)  # and no task was run
    assert {name: model["attention"]["name"] for name, model in listed.items()} == {"gqa": "gqa", "linear": "linear"}
    for other in (train, evaluate):
        assert other.main(["--quick"]) == 2
        assert "--quick is a flag of mgpt-compare" in capsys.readouterr().err
