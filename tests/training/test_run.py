"""Files, messages and refusals of a run."""

import csv
import json
import logging
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from modular_gpt import __version__
from modular_gpt.checkpoint import FOLDER, load_checkpoint
from modular_gpt.core.atomic_files import MARK
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError, NonFiniteError, UserError
from modular_gpt.model import GPTModel
from modular_gpt.runtime.environment import git_commit
from modular_gpt.training import RunConfig, TrainerConfig, train
from modular_gpt.training.checkpointing import Checkpoints
from modular_gpt.training.metrics import METRICS, Curves, read_metrics
from modular_gpt.training.plot import plot_losses, smoothed, title
from modular_gpt.training.recorder import duration
from modular_gpt.training.run_directory import new_run_directory
from tests.fresh import processes
from tests.training.small import (
    EXPLAINED,
    MODEL,
    assert_same_ending,
    ending,
    finished_run,
    run,
    run_without_compiler,
    stop_after,
    trainer_of,
)
from tests.training.small import one_layer as config


def test_a_run_writes_all_files(pictures: None, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(folder, final_evaluation=True, sample_prompt="the cat", name="first")
    result = train(settings)
    directory, outcome = result.directory, result.outcome
    assert outcome is not None
    assert (folder / "runs" / "latest").resolve() == directory.resolve()
    assert directory.name.endswith("-first")

    entries = read_metrics(directory)
    training = [entry for entry in entries if "loss" in entry]
    validation = [entry for entry in entries if "validation_loss" in entry]
    assert [entry["step"] for entry in training] == [3, 6, 9, 12]
    assert [entry["step"] for entry in validation] == [4, 8, 12]
    assert training[-1]["tokens"] == 12 * 4 * 16
    assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "seconds"} <= training[0].keys()
    with (directory / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == [entry["step"] for entry in entries]

    recorded = RunConfig.from_dict(yaml.safe_load((directory / "config.yaml").read_text()))
    assert recorded == replace(settings, optim=replace(settings.optim, learning_rate=8e-3))  # the value of null
    info = json.loads((directory / "run.json").read_text())
    assert info["config"] == recorded.to_dict()
    assert info["data"]["corpus"]["fingerprint"]
    assert info["environment"]["libraries"]["torch"] and info["environment"]["modular_gpt"] == __version__
    assert info["seed"] == settings.seed and info["environment"]["processor"]
    assert info["environment"]["git_commit"] == git_commit()
    assert (directory / "samples.txt").read_text().count("=== step ") == 3
    assert "    | the cat" in (directory / "samples.txt").read_text()
    assert (directory / "loss.png").read_bytes().startswith(b"\x89PNG")

    model, tokenizer, meta = load_checkpoint(directory)
    assert meta["step"] == outcome.best_step == min(validation, key=lambda entry: entry["validation_loss"])["step"]
    assert tokenizer is not None
    assert outcome.parameters == model.num_parameters().total
    assert outcome.perplexity == pytest.approx(math.exp(outcome.loss))
    printed = capsys.readouterr().out
    assert result.table and result.table in printed
    for message in (
        f"{outcome.parameters:,}",
        f"{outcome.loss:.4f}",
        "zlib -9",
        f"mgpt-generate checkpoint={directory}",
    ):
        assert message in result.table


def test_the_report_uses_the_best_weights_and_the_whole_text(folder: Path) -> None:
    settings = config(folder, final_evaluation=True, optim={"name": "adamw", "learning_rate": 0.05}, max_steps=24)
    result = run(settings)
    assert result.outcome is not None
    trainer = trainer_of(settings)
    trainer.model.load_state_dict(load_checkpoint(result.directory).model.state_dict())
    assert result.outcome.whole
    assert result.outcome.loss == pytest.approx(trainer.validation.loss(0), abs=1e-6)
    bits = result.outcome.loss / math.log(2) * trainer.data.validation.count / trainer.data.validation.bytes
    assert result.outcome.bits_per_byte == pytest.approx(bits)


def test_an_early_end_prints_how_to_resume(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(monkeypatch, 5)
    result = train(config(folder))
    assert result.outcome is None
    assert (
        f"Stopped after step 5, which is saved. To resume: mgpt-train resume={result.directory}"
        in capsys.readouterr().out
    )


def test_twenty_runs_started_at_once_have_twenty_directories(folder: Path) -> None:
    assert len({new_run_directory(folder / "runs", "gpt") for _ in range(20)}) == 20


def test_latest_without_symbolic_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems without symbolic links a text file names the directory."""

    def refuse(*args: Any, **keywords: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    directory = run(config(folder)).directory
    assert (folder / "runs" / "latest").read_text() == directory.name
    assert load_checkpoint(folder / "runs" / "latest").meta["step"] > 0
    assert run(config(folder, resume=str(folder / "runs" / "latest"), max_steps=14)).directory == directory.absolute()


def test_a_directory_named_latest_is_not_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "runs" / "latest" / "other").mkdir(parents=True)
    assert run(config(folder)).outcome is not None
    assert (folder / "runs" / "latest" / "other").is_dir()
    assert "could not be set to this run" in caplog.text


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"batch_size": 6, "gradient_accumulation": 4}, ConfigError, "batch_size=6 does not divide"),
        ({"max_steps": 0}, ConfigError, "trainer.max_steps must be at least 1, got 0"),
        ({"gradient_clip": -1.0}, ConfigError, "trainer.gradient_clip must be at least 0"),
        ({"precision": "float8"}, ConfigError, "trainer.precision: no choice 'float8'"),
        ({"device": "cuda:77"}, ConfigError, "trainer.device=cuda:77 cannot be used here"),
        ({"device": "gpu"}, ConfigError, "trainer.device=gpu cannot be used here"),
        ({"order": "shuffled"}, ConfigError, "trainer.order"),
        ({"sample_temperature": 0.0}, ConfigError, "trainer.sample_temperature must be above 0"),
        ({"optim": "adam"}, ConfigError, "did you mean 'adamw'"),
        ({"optim": {"name": "adamw", "learning": 1}}, ConfigError, "no setting 'learning'"),
        ({"optim": {"name": "adamw", "learning_rate": 0.0}}, ConfigError, "optim.learning_rate must be above 0"),
        ({"optim": {"name": "adamw", "beta1": 1.0}}, ConfigError, "optim.beta1 must lie in"),
        ({"optim": {"name": "muon", "momentum": -0.1}}, ConfigError, "optim.momentum must lie in"),
        ({"name": "a/b"}, ConfigError, "name='a/b'"),
        ({"resume": "runs/nothing"}, CheckpointError, "there is no checkpoint at 'runs/nothing'"),
        ({"tokenizer": "char", "sample_prompt": "日"}, DataError, "日"),
        ({"model": {"vocab_size": 100}}, DataError, "the tokenizer has 256 ids but the model only 100"),
        ({"model": {"context_length": 10**6}}, DataError, "context_length"),
        ({"model": {"n_heads": 3}}, ConfigError, "n_heads=3"),
        ({"model": {"n_head": 4, "n_heads": 2}}, ConfigError, "contradicts"),
    ],
    ids=str,
)
def test_invalid_settings_are_refused_before_the_first_step(
    settings: dict[str, Any], error: type[UserError], message: str, folder: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        run(config(folder, **settings))
    assert "\n" not in str(caught.value)
    assert not list((folder / "runs").glob("*-gpt")), "a run that cannot start leaves no directory"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 characters"),
        (b"abc\x00def" * 100, "NUL|binary"),
        (("text " * 200).encode("utf-16"), "UTF-8|binary|NUL"),
        (("é" * 500).encode("latin-1"), "UTF-8"),
        (b"a", "1 character"),
        (b"a" * 17, "context_length|validation"),
    ],
    ids=str,
)
def test_bad_text_is_refused_before_the_first_step(content: bytes, message: str, folder: Path) -> None:
    settings = config(folder)
    (folder / "text.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        run(settings)
    assert "\n" not in str(caught.value)
    assert not list((folder / "runs").glob("*-gpt"))


def test_a_directory_without_text(folder: Path) -> None:
    (folder / "empty").mkdir()
    settings = config(folder, data={"name": "text", "path": str(folder / "empty")})
    with pytest.raises(DataError, match="empty"):
        run(settings)


@pytest.mark.usefixtures("fast")
class TestDeterminism:
    def test_equal_settings_give_equal_runs(self, folder: Path) -> None:
        model = {"dropout": 0.1}
        assert_same_ending(run(config(folder, model)).directory, run(config(folder, model)).directory)

    @pytest.mark.parametrize(
        "settings",
        [
            {"eval_interval": 5},
            {"eval_batches": 0},
            {"sample_tokens": 0},
            {"sample_prompt": "it was"},
            {"save_interval": 1, "keep": 1},
            {"final_evaluation": True},
        ],
        ids=str,
    )
    def test_evaluations_samples_and_saves_do_not_change_the_training(
        self, settings: dict[str, Any], folder: Path
    ) -> None:
        """Losses, weights and optimizer are equal for every interval of evaluations, samples and saves."""
        model = {"dropout": 0.1}
        one = ending(finished_run(config(folder, model)))
        other = ending(run(config(folder, model, **settings)).directory)
        assert one[0].keys() == other[0].keys()
        assert all((one[0][name] == other[0][name]).all() for name in one[0])
        losses = [[entry for entry in metrics if "loss" in entry] for _, _, metrics in (one, other)]
        assert losses[0] == losses[1]

    def test_seeds_differ(self, folder: Path) -> None:
        one, other = (ending(run(config(folder, seed=seed)).directory)[2] for seed in (0, 1))
        assert one != other


@pytest.mark.usefixtures("fast")
class TestRotation:
    def steps(self, directory: Path) -> list[int]:
        return sorted(int(path.name[5:]) for path in (directory / FOLDER).glob("step_*"))

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_newest_and_the_best_are_kept(self, keep: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        losses = iter([3.0, 1.0, 2.0, 2.5, 2.6, 2.7])
        monkeypatch.setattr("modular_gpt.training.validation.Validation.loss", lambda self, batches: next(losses))
        directory = run(config(folder, eval_interval=2, keep=keep)).directory
        assert self.steps(directory) == sorted({4, *range(14 - 2 * keep, 13, 2)})
        assert (directory / FOLDER / "best").resolve().name == "step_00000004"
        assert (directory / FOLDER / "latest").resolve().name == "step_00000012"
        assert load_checkpoint(directory).meta["step"] == 4

    @pytest.mark.parametrize("keep", [1, 2, 3])
    @pytest.mark.parametrize("back", [2, 4, 6])
    def test_resuming_an_earlier_step_removes_later_checkpoints_at_the_first_save(
        self, keep: int, back: int, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = finished_run(config(folder, eval_interval=2, keep=9))
        with monkeypatch.context() as patch:
            stop_after(patch, back + 1)
            again = config(
                folder, eval_interval=2, keep=keep, resume=str(whole / FOLDER / f"step_{back:08}"), rewind=True
            )
            assert run(again).directory == whole.absolute()
        assert max(self.steps(whole)) == back + 1
        assert back + 1 in self.steps(whole)
        assert len(self.steps(whole)) <= keep + 1
        assert load_checkpoint(whole / FOLDER / "latest").meta["step"] == back + 1

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_later_checkpoints_of_an_abandoned_branch(self, keep: int, folder: Path) -> None:
        """They count neither as the newest nor among the kept ones."""
        directory = run(config(folder, eval_interval=2, keep=keep)).directory
        stale = directory / FOLDER / "step_00000099"
        shutil.copytree(directory / FOLDER / "step_00000012", stale)
        run(config(folder, eval_interval=2, keep=keep, max_steps=16, resume=str(directory)))
        assert not stale.exists()
        best = int((directory / FOLDER / "best").resolve().name[5:])
        assert self.steps(directory) == sorted({best, *range(18 - 2 * keep, 17, 2)})
        assert load_checkpoint(directory / FOLDER / "latest").meta["step"] == 16

    @pytest.mark.parametrize("keep", [1, 2, 3])
    @pytest.mark.parametrize("failing_save", [2, 3])
    def test_a_failed_save_removes_no_checkpoint(
        self, keep: int, failing_save: int, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        saves = 0
        save = Checkpoints.save

        def failing(self: Checkpoints, required: bool) -> None:
            nonlocal saves
            saves += 1
            if saves == failing_save:
                monkeypatch.setattr("safetensors.torch.serialize_file", full)
            save(self, required)

        def full(*args: Any, **keywords: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Checkpoints, "save", failing)
        with pytest.raises(CheckpointError, match="No space left on device"):
            run(config(folder, eval_interval=2, keep=keep))
        (directory,) = (folder / "runs").glob("*-gpt")
        assert 2 * failing_save - 2 in self.steps(directory)
        assert not list((directory / FOLDER).glob(f"*{MARK}*"))
        assert load_checkpoint(directory).meta["step"] in (2, 4)
        assert load_checkpoint(directory / FOLDER / "latest").meta["step"] == 2 * failing_save - 2


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("patience", "steps"), [(1, 6), (2, 12), (3, 14), (None, 16)])
def test_training_ends_with_patience(
    patience: int | None, steps: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses at steps 2, 4, ...; steps 4 and 8 are new minima, and no later one is."""
    losses = iter([3.0, 2.0, 2.5, 1.0, 1.5, 1.5, 1.2, 1.1])
    monkeypatch.setattr("modular_gpt.training.validation.Validation.loss", lambda self, batches: next(losses))
    settings = {"eval_interval": 2, "max_steps": 16, "patience": patience}
    result = run(config(folder, **settings))
    assert result.outcome is not None
    assert result.outcome.steps == steps
    assert load_checkpoint(result.directory).meta["step"] == (4 if patience == 1 else 8)
    assert read_metrics(result.directory)[-1]["step"] == steps


def test_a_plot_without_data(folder: Path) -> None:
    assert plot_losses(folder).stat().st_size > 0


def test_a_plot_of_a_diverged_run(folder: Path) -> None:
    nothing = math.nan
    entries = [{"step": 1, "loss": nothing}, {"step": 2, "validation_loss": nothing, "bits_per_byte": nothing}]
    (folder / METRICS).write_text("\n".join(json.dumps(entry) for entry in entries))
    assert plot_losses(folder).stat().st_size > 0


def test_a_plot_smooths_noisy_losses() -> None:
    noisy = [(10.0 * n, 2.0 + (-1) ** n) for n in range(160)]
    smooth = smoothed(noisy)
    assert {loss for _, loss in smooth} == {2.0}  # the mean of four entries at a time
    assert [smooth[0][0], smooth[-1][0]] == [20.0, 1580.0]
    assert smoothed(noisy[:79]) == []


def test_a_plot_shows_the_result(folder: Path) -> None:
    entries = [{"step": 5, "tokens": 2000}, {"step": 5, "validation_loss": 1.5, "bits_per_byte": 2.164}, {"step": 6}]
    assert title(folder / "one", Curves(entries)) == (
        "one\nbest validation loss 1.5000 (2.164 bits per byte) at step 5; 2,000 tokens in all"
    )


@pytest.mark.parametrize(
    ("seconds", "message"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01"), (math.inf, "?")]
)
def test_durations(seconds: float, message: str) -> None:
    assert duration(seconds) == message


def test_warnings_reach_the_user(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = run(config(folder)).directory
    (directory / FOLDER / "step_00000012" / "meta.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        run(config(folder, resume=str(directory)))
    assert "meta.json' is damaged" in caplog.text


def test_defaults_equal_those_of_the_dataclass() -> None:
    assert RunConfig().trainer == TrainerConfig()
    assert RunConfig.from_dict({}) == RunConfig()


def test_samples_contain_no_terminal_control_characters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modular_gpt.training.validation.Validation.sample", lambda self: "a\x1b[2Jb\rc\x00\n\td é")
    text = (run(config(folder)).directory / "samples.txt").read_text(encoding="utf-8")
    assert "    | a\ufffd[2Jb\ufffdc\ufffd\n    | \td é\n" in text


def test_samples_never_have_ids_without_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with 64 ids and a smaller tokenizer."""
    drawn: list[int] = []
    original = GPTModel.generate

    def seen(self: GPTModel, *args: Any, **settings: Any) -> Any:
        out = original(self, *args, **settings)
        drawn.extend(out[0].tolist())
        return out

    monkeypatch.setattr(GPTModel, "generate", seen)
    settings = {"max_steps": 4, "sample_tokens": 60, "sample_temperature": 5.0}
    directory = run(config(folder, {"vocab_size": 64}, tokenizer="char", **settings)).directory
    tokenizer = load_checkpoint(directory).tokenizer
    assert tokenizer is not None and tokenizer.vocab_size < 40
    assert len(drawn) > 60 and max(drawn) < tokenizer.vocab_size


def test_a_sample_of_a_broken_model_does_not_end_the_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise NonFiniteError("the model's logits are not finite")

    monkeypatch.setattr("modular_gpt.generation.sampling.check_finite", broken)
    text = (run(config(folder)).directory / "samples.txt").read_text(encoding="utf-8")
    assert text.count("(no sample: the model's logits are not finite)") == 3


def test_progress_is_printed_in_lines_without_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modular_gpt.training.recorder.QUIET", 0.0)
    train(config(folder))
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("step ") and "tok/s" in line]
    assert [line.split()[1] for line in lines] == ["3/12", "6/12", "9/12", "12/12"]
    assert captured.err == ""


@pytest.mark.slow
def test_without_a_compiler_compilation_is_refused(folder: Path) -> None:
    """In a separate process: PyTorch caches that it found no compiler."""
    settings = config(folder, {"n_layers": 1}, compile=True, device="cpu").to_dict()
    process = processes().Process(target=run_without_compiler, args=(settings,))
    process.start()
    process.join()
    assert process.exitcode == EXPLAINED


def test_compiled_training_equals_eager_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With "aot_eager", the compiler without its code generator, which is tested elsewhere."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    settings = {"precision": "float32", "max_steps": 6, "sample_tokens": 0, "eval_interval": 6}
    one = {"n_layers": 1}
    plain, compiled = (ending(run(config(folder, one, compile=c, **settings)).directory) for c in (False, True))
    losses = [[entry["loss"] for entry in metrics if "loss" in entry] for _, _, metrics in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert plain[0].keys() == compiled[0].keys(), "a checkpoint does not show that its model was compiled"


def test_a_vocabulary_wider_than_the_tokenizer(folder: Path) -> None:
    """Samples may contain ids without text; neither they nor the report end the training."""
    settings = config(folder, {**MODEL, "vocab_size": 3000}, max_steps=2, eval_interval=1, sample_tokens=40)
    result = train(settings)
    assert (result.directory / "samples.txt").read_text().count("=== step ") == 2


def test_samples_start_with_the_beginning_of_text_token(folder: Path) -> None:
    """The model reads the token, and it is not shown."""
    trainer = trainer_of(config(folder, max_steps=1, sample_prompt="cat"))
    tokenizer = trainer.validation.tokenizer
    assert trainer.validation.prompt() == list(b"cat") and (trainer.validation.sample() or "").startswith("cat")
    tokenizer.__dict__["bos_id"] = 1
    assert trainer.validation.prompt() == [1, *b"cat"] and (trainer.validation.sample() or "").startswith("cat")
    trainer.validation.config.sample_prompt = ""
    assert trainer.validation.prompt()[0] == 1 and trainer.validation.prompt().count(1) == 1
