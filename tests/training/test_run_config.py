"""RunConfig and TrainerConfig in Python: accepted values, and one sentence for each mistake."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from modular_gpt import GPTConfig, GPTModel
from modular_gpt.core.errors import ConfigError
from modular_gpt.data import build_tokenizer
from modular_gpt.optim import with_former_rate
from modular_gpt.training import RunConfig, RunResult, TrainerConfig, load_config, train
from modular_gpt.training.report import Outcome
from tests.training.small import MODEL, config, run, trainer_of, write_text

TOKENIZER = build_tokenizer("byte")


@pytest.mark.parametrize(
    "model",
    [MODEL, GPTConfig(**MODEL), SimpleNamespace(**MODEL), {"n_embd": 16, "n_head": 2, "n_layers": 2, "block_size": 16,
                                                           "pos": "rope"}],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_a_model_by_every_kind_of_description(model: Any) -> None:
    settings = RunConfig(model=model, tokenizer="byte")
    assert isinstance(settings.model, GPTConfig) and settings.model.d_model == 16
    assert settings.vocab_size is None and "vocab_size" not in settings.to_dict()["model"]
    assert settings.model_config(TOKENIZER) == GPTConfig(**MODEL, vocab_size=256)


def test_a_given_vocabulary_size_is_kept() -> None:
    byte = RunConfig(model={**MODEL, "vocab_size": 256})
    wide = RunConfig(model=GPTConfig(**MODEL, vocab_size=300))
    for settings, size in ((byte, 256), (wide, 300), (replace(wide, seed=1), 300), (replace(byte, seed=1), 256)):
        assert settings.vocab_size == settings.to_dict()["model"]["vocab_size"] == size
        assert RunConfig.from_dict(settings.to_dict()) == settings
        assert settings.model_config(SimpleNamespace(vocab_size=65)).vocab_size == size  # type: ignore[arg-type]
    assert RunConfig(model=MODEL).model_config(SimpleNamespace(vocab_size=65)).vocab_size == 65  # type: ignore[arg-type]


def test_paths_may_be_paths(folder: Path) -> None:
    text = write_text(folder / "text.txt")
    settings = config(folder, data={"name": "text", "path": text}, runs=folder / "runs", sample_tokens=0)
    assert settings == config(folder, sample_tokens=0)
    directory = run(settings).directory
    assert run(config(folder, resume=directory, max_steps=13)).outcome is not None


@pytest.mark.parametrize(
    ("call", "excerpts"),
    [
        (lambda: RunConfig(modle={}), ["no setting 'modle'", "did you mean 'model'"]),
        (lambda: RunConfig(seed="one"), ["run.seed must be a whole number, got 'one'"]),
        (lambda: RunConfig(trainer=3), ["run.trainer must be a group of settings"]),
        (lambda: RunConfig(trainer={"max_stepz": 3}), ["no setting 'max_stepz'", "did you mean 'max_steps'"]),
        (lambda: RunConfig(model=GPTModel(GPTConfig(**MODEL))), ["model=model.config"]),
        (lambda: RunConfig(model="gpt2"), ["a model is described by"]),
        (lambda: RunConfig(optim={"name": "adamw", "momentum": 1}), ["no setting 'momentum'"]),
        (lambda: TrainerConfig(max_steps="ten"), ["trainer.max_steps must be a whole number, got 'ten'"]),
        (lambda: TrainerConfig(10, "eight"), ["trainer.batch_size must be a whole number, got 'eight'"]),
        (lambda: TrainerConfig(max_stepz=3), ["no setting 'max_stepz'", "did you mean 'max_steps'"]),
        (lambda: TrainerConfig(keep_every=0), ["trainer.keep_every must be at least 1"]),
        (lambda: train(GPTModel(GPTConfig(**MODEL))), ["got a GPTModel", "train(RunConfig(model=model.config, ...))"]),
        (lambda: train(GPTConfig(**MODEL)), ["got a GPTConfig", "train(RunConfig(model=config, ...))"]),
        (lambda: train({"modle": {}}), ["did you mean 'model'"]),
        (lambda: train(3), ["train takes a RunConfig, got a int"]),
    ],
)
def test_a_mistake_is_one_sentence(call: Any, excerpts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert all(excerpt in str(caught.value) for excerpt in excerpts), str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[("fp32", "float32"), (32, "float32"), ("32", "float32"), ("bfloat16", "bf16"), ("bf16-mixed", "bf16")],
        *[("16-mixed", "fp16"), ("float32", "float32"), ("auto", "auto")],
    ],
)
def test_precisions_by_the_names_of_other_programs(name: Any, expected: str) -> None:
    assert TrainerConfig(precision=name).precision == expected


def test_foreign_settings_of_an_optimizer() -> None:
    assert RunConfig(optim={"name": "adamw", "lr": 1e-3}).optim.learning_rate == 1e-3


@pytest.mark.parametrize(("name", "rate"), [("adamw", 4e-3), ("muon", 8e-3)])
def test_a_run_records_the_default_learning_rate(name: str, rate: float, folder: Path) -> None:
    settings = config(folder, optim=name, schedule="wsd", max_steps=2)
    assert settings.to_dict()["optim"]["learning_rate"] is None  # the default depends on the width
    directory = train(settings, quiet=True).directory
    assert load_config(directory).optim.learning_rate == rate
    assert yaml.safe_load((directory / "config.yaml").read_text())["optim"]["learning_rate"] == rate


def test_null_in_a_former_record_is_the_former_learning_rate() -> None:
    """Former versions recorded null, which meant the same learning rate for Muon and AdamW."""
    assert with_former_rate({"name": "muon", "learning_rate": None}, 128)["learning_rate"] == 0.5 / 128
    assert with_former_rate({"name": "muon", "learning_rate": None}, 16)["learning_rate"] == 4e-3
    assert with_former_rate({"name": "muon", "learning_rate": 0.02}, 128)["learning_rate"] == 0.02


def test_a_mapping_can_be_trained(folder: Path) -> None:
    result = train({**config(folder, sample_tokens=0).to_dict(), "name": "plain"}, quiet=True)
    assert result.directory.name.endswith("-plain")


def test_the_repr_of_a_result_is_one_line() -> None:
    outcome = Outcome(1, 1, 12, 1, 1.0, 2.5, 8, True, 1.0, 1.0)
    assert repr(RunResult(Path("runs/x"), None, outcome, "a table")) == (
        "RunResult('runs/x': validation loss 2.5000 after 12 steps)"
    )
    assert repr(RunResult(Path("runs/x"), 2, None, None)) == "RunResult('runs/x': stopped by signal 2)"


def test_a_run_reports_the_steps_per_epoch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(folder, sample_tokens=0)
    train(settings)
    epoch = trainer_of(settings).data.train.count / (4 * 16)
    assert f"{epoch:,.1f} steps are an epoch" in capsys.readouterr().out
