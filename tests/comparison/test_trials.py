"""A trial is a function from JSON values to JSON values, and all trials have equal conditions."""

import json
from pathlib import Path

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.comparison import run_trial
from modular_gpt.comparison.conditions import check_trials
from modular_gpt.comparison.trial import Trial
from modular_gpt.core.registry import entries
from tests.comparison.small import comparison, run

SIZE = {"vocab_size": 64, "d_model": 32, "n_heads": 4, "n_layers": 2, "context_length": 16}
CLOCK = ("training_seconds", "seconds", "cpu_seconds", "tokens_per_second")


def trial(folder: Path, rate: float = 1e-2, seed: int = 1, trainer: dict | None = None, **model: object) -> Trial:
    """The first trial of a comparison."""
    plan = comparison(folder, {"a": run(folder, trainer, **model), "b": run(folder, trainer, **model)}).plan
    return Trial("a", plan.variants["a"], rate, seed)


def test_a_trial_repeats_bitwise_from_json_to_json(tmp_path: Path) -> None:
    values = json.loads(json.dumps(trial(tmp_path).plain()))
    one, two = ({k: v for k, v in run_trial(values).items() if k not in CLOCK} for _ in range(2))
    assert json.dumps(one) == json.dumps(two)
    assert one["loss"] == one["validations"][-1][1] and one["steps"] == 8


def test_a_trial_leaves_no_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_trial(trial(tmp_path).plain())
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_another_seed_is_another_training(tmp_path: Path) -> None:
    one, two = (trial(tmp_path, seed=seed) for seed in (1, 2))
    assert one.key != two.key
    assert run_trial(one.plain())["loss"] != run_trial(two.plain())["loss"]


def test_a_diverged_training_has_no_loss(tmp_path: Path) -> None:
    found = run_trial(trial(tmp_path, rate=1e30, trainer={"gradient_clip": 0.0}).plain())
    assert found["loss"] is None and found["diverged"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("attention", entries("attention"))
def test_common_parameters_start_equal(attention: str) -> None:
    """With initialisation by name all weights outside of attention equal those of the baseline."""
    torch.manual_seed(1)
    one = dict(GPTModel(GPTConfig(**SIZE, init_by_name=True)).named_parameters())
    torch.manual_seed(1)
    other = dict(GPTModel(GPTConfig(**SIZE, init_by_name=True, attention=attention)).named_parameters())
    common = [name for name in one if name in other and ".attention." not in name]
    assert len(common) > 8
    assert all(torch.equal(one[name], other[name]) for name in common)
    matrices = [name for name in common if one[name].ndim > 1]
    assert len({one[name].flatten()[0].item() for name in matrices}) == len(matrices)


def test_another_seed_gives_other_weights_by_name() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(GPTModel(GPTConfig(**SIZE, init_by_name=True)))
    assert not torch.equal(models[0].embedding.weight, models[1].embedding.weight)


REFUSED = [
    ({"data": "python_stdlib"}, {}, "the texts differ"),
    ({"tokenizer": "byte"}, {}, "comparable with one tokenizer only"),
    ({"trainer": {"precision": "bf16"}}, {}, "times and rounding differ: trainer.precision"),
    ({"trainer": {"threads": 2}}, {}, "times differ"),
    ({"trainer": {"compile": True}}, {}, "trainer.compile is False and True"),
    ({"trainer": {"eval_batches": 2}}, {}, "the windows that are validated differ"),
    ({"trainer": {"patience": 2}}, {}, "never stops early"),
    ({"trainer": {"max_time": "1h"}}, {}, "makes budgets equal by the number of steps"),
    ({"seed": 3}, {}, "a swept seed"),
    ({"optim": {"name": "adamw", "learning_rate": 0.5}}, {}, "a swept learning rate"),
    ({}, {"context_length": 8}, "the windows that are validated differ: model.context_length is 16 and 8"),
]


@pytest.mark.parametrize(("settings", "model", "sentence"), REFUSED, ids=[sentence for *_, sentence in REFUSED])
def test_other_conditions_are_refused(settings: dict, model: dict, sentence: str, tmp_path: Path) -> None:
    one = run(tmp_path, {"compile": False})
    values = one.to_dict()
    trainer = {**values["trainer"], **settings.pop("trainer", {})}
    other = type(one).from_dict({**values, **settings, "trainer": trainer, "model": {**values["model"], **model}})
    with pytest.raises(ConfigError, match=sentence):
        comparison(tmp_path, {"a": one, "b": other})


def test_trials_of_other_conditions_are_refused() -> None:
    conditions = {"data": "x", "precision": "float32", "threads": 1}
    trials = [{"variant": name, "conditions": conditions} for name in "ab"]
    check_trials(trials)
    with pytest.raises(ConfigError, match="precision is 'float32' for a and 'bf16' for b"):
        check_trials([trials[0], {"variant": "b", "conditions": {**conditions, "precision": "bf16"}}])


def test_precision_threads_and_compilation_are_resolved_once(tmp_path: Path) -> None:
    trainer = {"precision": "auto", "compile": "auto", "threads": None}
    plan = comparison(tmp_path, {"a": run(tmp_path, trainer), "b": run(tmp_path, trainer, attention="mla")}).plan
    decided = {name: plan.variants["a"]["trainer"][name] for name in trainer}
    assert decided == {name: plan.variants["b"]["trainer"][name] for name in trainer}
    assert decided["precision"] in ("float32", "bf16") and decided["compile"] is False and decided["threads"] >= 1
