"""A run that starts from the weights of another one: transferred weights, reports and refusals."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.core.errors import CheckpointError, ConfigError
from modular_gpt.training import RunConfig, RunResult, load_config, train
from modular_gpt.training.finetune import open_source
from tests.training.small import assert_same_ending, config, gpt2_folder, run, stop_after, trainer_of, write_text

pytestmark = pytest.mark.usefixtures("fast")
LOSSES = re.compile(r"first (\d+) tokens to validate: ([\d.]+) with the original components, ([\d.]+) with those")


@pytest.fixture
def source(folder: Path) -> RunResult:
    return run(config(folder, runs=str(folder / "before")))


def run_with_output(settings: RunConfig, capsys: pytest.CaptureFixture[str]) -> tuple[RunResult, str]:
    capsys.readouterr()
    return train(settings), capsys.readouterr().out


def test_other_components(source: RunResult, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(folder, {"attention": "mqa", "norm": "rmsnorm"}, init_from=str(source.directory))
    result, text = run_with_output(settings, capsys)
    assert f"from {source.directory}" in text
    for excerpt in ("loaded", "converted", "skipped", "blocks.0-1.attention.key.weight", "means of 2 heads"):
        assert excerpt in text
    count, before, after = LOSSES.search(text).groups()  # type: ignore[union-attr]
    assert int(count) == 8 * 16 and before != after
    assert text.index("to validate:") < text.index("Training  12 steps")
    model = load_checkpoint(result.directory).model
    assert model.config.attention.name == "mqa" and result.outcome is not None and result.outcome.steps == 12


def test_equal_components_give_the_same_model(
    source: RunResult, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(folder, {"dropout": 0.1}, init_from=str(source.directory), seed=5)
    trainer = trainer_of(settings)
    text = capsys.readouterr().out
    _, before, after = LOSSES.search(text).groups()  # type: ignore[union-attr]
    assert before == after and "converted" not in text and "new" not in text.split()
    old = load_checkpoint(source.directory).model.state_dict()
    assert all(torch.equal(old[name], value) for name, value in trainer.model.state_dict().items())
    assert source.outcome is not None
    assert trainer.validation.loss(trainer.config.eval_batches) == source.outcome.loss


def test_losses_are_compared_on_equal_windows_for_different_contexts(
    source: RunResult, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(config(folder, {"context_length": 24}, init_from=str(source.directory)))
    count, before, after = LOSSES.search(capsys.readouterr().out).groups()  # type: ignore[union-attr]
    assert int(count) == 8 * 16 and before == after


def test_quiet_prints_nothing(source: RunResult, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    run(config(folder, init_from=str(source.directory)))
    assert capsys.readouterr().out == ""


def test_a_resume_does_not_initialise_again(source: RunResult, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the source no longer exists."""
    settings: dict[str, Any] = {"model": {"attention": "mqa"}, "init_from": str(source.directory)}
    whole = run(config(folder, **settings)).directory
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        stopped = run(config(folder, **settings))
    source.directory.rename(folder / "gone")
    resumed = run(load_config(stopped.directory))
    assert_same_ending(whole, resumed.directory)
    assert load_config(whole).init_from == str(source.directory)


def test_not_with_resume(source: RunResult, folder: Path) -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        run(config(folder, init_from="gpt2", resume=str(source.directory), max_steps=20))


def test_a_trained_tokenizer_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The characters of another text would have other ids."""
    before = run(config(folder, tokenizer="char", runs=str(folder / "before"))).directory
    (folder / "text.txt").write_text("the mat sat on it\n" * 600)
    settings = config(folder, tokenizer="char", init_from=str(before))
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        stopped = run(settings).directory
    resumed = run(load_config(stopped)).directory
    old, new = load_checkpoint(before).tokenizer, load_checkpoint(resumed).tokenizer
    assert old is not None and new is not None and old.fingerprint == new.fingerprint


def test_another_tokenizer_has_no_loss_to_compare(
    source: RunResult, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(config(folder, tokenizer="char", init_from=str(source.directory)))
    text = capsys.readouterr().out
    assert (
        "is not compared before training: the weights were trained with another tokenizer" in text
        and not LOSSES.search(text)
    )


def test_from_a_folder_of_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(folder / "text.txt")
    published = folder / "gpt2"
    gpt2_folder(published, folder / "text.txt", torch.bfloat16)
    model = open_source(str(published)).model.config.to_dict()
    settings = config(
        folder,
        {**model, "attention": {"name": "gqa", "n_kv_heads": 2}},
        tokenizer={"name": "hf", "path": str(published / "tokenizer.json")},
        init_from=str(published),
    )
    result, text = run_with_output(settings, capsys)
    assert "means of 2 heads" in text and LOSSES.search(text)
    assert result.outcome is not None and result.outcome.steps == 12
    weights = load_checkpoint(result.directory).model.state_dict().values()
    assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {torch.float32}
    assert json.loads((result.directory / "run.json").read_text())["config"]["init_from"] == str(published)


def test_invalid_sources_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        run(config(folder, init_from=str(folder / "nothing")))
    with pytest.raises(CheckpointError, match="did you mean 'gpt2'"):
        run(config(folder, init_from="gtp2"))
    save_checkpoint(folder / "bare", GPTModel(vocab_size=256, d_model=16, n_heads=2, n_layers=1))
    with pytest.raises(ConfigError, match="d_model"):
        run(config(folder, {"d_model": 15}, init_from=str(folder / "bare")))
    assert not (folder / "runs").exists()
