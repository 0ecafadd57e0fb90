"""Secondary faults do not end a training: full disks, failing samples and loggers, deleted directories."""

import builtins
import errno
import io
import json
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt.checkpoint import FOLDER, find_checkpoint, load_checkpoint, manifest, stored_tensors
from modular_gpt.cli.train import main as mgpt_train
from modular_gpt.core.errors import CheckpointError, ConfigError, DataError, NonFiniteError, UserError
from modular_gpt.model.config import GPTConfig
from modular_gpt.training import run as run_module
from modular_gpt.training import train
from modular_gpt.training.checkpointing import Checkpoints, steps_in
from modular_gpt.training.metrics import METRICS, MetricsLog, read_metrics
from modular_gpt.training.report import Outcome
from modular_gpt.training.run import open_run
from modular_gpt.training.run_directory import RunFiles
from modular_gpt.training.trainer import Progress, Trainer
from tests.training.small import one_layer as config
from tests.training.small import run, stop_after, trainer_of, write_text

NO_WAITING = {"max_steps": 4, "eval_interval": 2, "log_interval": 1, "sample_tokens": 1}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


class FullDisk:
    """A disk that refuses one write: the ``number``-th one to paths whose name starts with ``name``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root, self.name, self.number = root, "", 0
        self.writes: Counter[str] = Counter()
        self.refused = 0
        original = builtins.open

        def opened(file: Any, mode: str = "r", *args: Any, **keywords: Any) -> Any:
            stream = original(file, mode, *args, **keywords)
            path = Path(os.readlink(f"/proc/self/fd/{file}")) if isinstance(file, int) else Path(file)
            return self.wrapped(stream, path) if set(mode) & set("wax+") else stream

        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)

        import safetensors.torch

        serialize = safetensors.torch.serialize_file

        def serialized(tensors: Any, path: Any, *args: Any, **keywords: Any) -> Any:
            self.note(Path(path))
            return serialize(tensors, path, *args, **keywords)

        monkeypatch.setattr(safetensors.torch, "serialize_file", serialized)

    def wrapped(self, stream: Any, path: Path) -> Any:
        return Watched(stream, lambda: self.note(path)) if self.root in path.absolute().parents else stream

    def note(self, path: Path) -> None:
        name = path.name.partition(".tmp-")[0]
        self.writes[name] += 1
        if name == self.name and self.writes[name] == self.number:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")


class Watched:
    """A file that calls ``ask`` before each write."""

    def __init__(self, stream: Any, ask: Callable[[], None]) -> None:
        self.stream, self.ask = stream, ask

    def write(self, data: Any) -> Any:
        self.ask()
        return self.stream.write(data)

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *error: Any) -> None:
        self.stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(directory / FOLDER / "latest").model.state_dict()


def test_any_write_to_the_run_directory_may_fail(
    pictures: None, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first and the last write of every file fails; the final weights equal those of a run without faults."""
    disk = FullDisk(monkeypatch, folder / "runs")
    whole = run(config(folder, **NO_WAITING)).directory
    counts = dict(sorted(disk.writes.items(), key=lambda item: item[0] != "loss.png"))
    files = {METRICS, "metrics.csv", "samples.txt", "loss.png", "config.yaml", "run.json"}
    saved = {"model.safetensors", "optimizer.safetensors", "trainer.safetensors", "config.json", "meta.json"}
    assert files | saved | {"manifest.json", "tokenizer.json"} <= counts.keys()
    for name in counts:
        in_checkpoint = (whole / FOLDER / "latest" / name).exists()
        if name != "loss.png":  # plotting is slow
            monkeypatch.setattr("modular_gpt.training.recorder.plot_losses", lambda *arguments: None)
        for number in [1] if in_checkpoint or counts[name] == 1 else [1, counts[name]]:
            caplog.clear()
            disk.writes.clear()
            disk.name, disk.number, disk.refused = name, number, 0
            result = run(config(folder, **NO_WAITING))
            assert disk.refused == 1 and result.outcome is not None, (name, number)
            messages = [record.getMessage() for record in caplog.records]
            reported = [message for message in messages if "No space left on device" in message]
            assert len(reported) == 1 and (name in reported[0] or in_checkpoint), (name, number, caplog.text)
            ends = weights(result.directory)
            assert all(torch.equal(tensor, ends[key]) for key, tensor in weights(whole).items()), (name, number)
            if name == METRICS:
                assert [entry["step"] for entry in read_metrics(result.directory)] == [1, 2, 2, 3, 4, 4]
            shutil.rmtree(result.directory)


def failing_saves(monkeypatch: pytest.MonkeyPatch, numbers: set[int]) -> list[int]:
    """Make the saves with these numbers fail; returns the steps of all attempts."""
    tried: list[int] = []
    complete = Checkpoints.complete

    def failing(self: Checkpoints, progress: Progress, *args: Any) -> None:
        tried.append(progress.step)
        if len(tried) in numbers:
            raise CheckpointError("cannot save (No space left on device)")
        complete(self, progress, *args)

    monkeypatch.setattr(Checkpoints, "complete", failing)
    return tried


@pytest.mark.usefixtures("fast")
def test_a_failed_save_is_retried_at_the_next_interval(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step without saved weights is not the best one; only the last save of a run must succeed."""
    losses = iter([3.0, 1.0, 2.0, 2.5])
    monkeypatch.setattr("modular_gpt.training.validation.Validation.loss", lambda self, batches: next(losses))
    with monkeypatch.context() as patch:
        tried = failing_saves(patch, {2})
        result = run(config(folder, eval_interval=3, keep=9))
    assert tried == [3, 6, 9, 12] and steps_in(result.directory / FOLDER) == [3, 9, 12]
    assert result.outcome is not None and result.outcome.best_step == 9 and result.outcome.loss == 2.0
    assert find_checkpoint(result.directory).name == "step_00000009"
    assert "step 6: cannot save (No space left on device); the training continues" in caplog.text
    losses = iter([3.0, 1.0, 2.0, 2.5])
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left"):
        failing_saves(patch, {4})
        run(config(folder, eval_interval=3))


def test_a_deleted_run_directory_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    update = Trainer.update

    def deleting(self: Trainer) -> None:
        update(self)
        if self.progress.step == 4:
            shutil.rmtree(next((folder / "runs").glob("*-gpt")))

    monkeypatch.setattr(Trainer, "update", deleting)
    result = run(config(folder))
    assert caplog.text.count("was deleted while the run trains in it") == 1
    assert load_checkpoint(result.directory).meta["step"] in (8, 12)


@pytest.mark.usefixtures("fast")
def test_a_vocabulary_wider_than_the_tokenizer(folder: Path) -> None:
    settings = config(folder, {"vocab_size": 400}, tokenizer="char", sample_tokens=40, sample_temperature=50.0)
    result = run(settings)
    assert result.outcome is not None
    assert (result.directory / "samples.txt").read_text().count("=== step ") == 3


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("place", ["generate", "decode"])
def test_a_failing_sample_does_not_end_the_training(
    place: str, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **keywords: Any) -> None:
        raise RuntimeError("no such kernel\nand more lines")

    owner = {"generate": "modular_gpt.model.GPTModel", "decode": "modular_gpt.data.Tokenizer"}[place]
    monkeypatch.setattr(f"{owner}.{place}", broken)
    result = run(config(folder))
    assert result.outcome is not None
    assert caplog.text.count("no sample could be generated (no such kernel)") == 1
    assert "(no sample: no such kernel)" in (result.directory / "samples.txt").read_text()


def test_a_failing_plot_does_not_end_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("no font")

    monkeypatch.setattr("modular_gpt.training.recorder.plot_losses", broken)
    monkeypatch.setattr("modular_gpt.training.recorder.PAUSE", 0.0)
    assert run(config(folder)).outcome is not None
    assert caplog.text.count("loss.png' cannot be written (no font)") == 1


def test_a_plot_is_written_after_an_evaluation_and_after_a_stop(
    pictures: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    update = Trainer.update

    def looking(self: Trainer) -> None:
        seen.append(bool(list((folder / "runs").glob("*-gpt/loss.png"))))
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr("modular_gpt.training.recorder.PAUSE", 0.0)
        patch.setattr(Trainer, "update", looking)
        run(config(folder, max_steps=5))
    assert seen == [False] * 4 + [True]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert (run(config(folder)).directory / "loss.png").is_file()


def test_metrics_are_appended_without_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is rewritten only for a new column."""
    log = MetricsLog(RunFiles(folder))
    log.add({"step": 1, "loss": 3.0})
    log.add({"step": 1, "validation_loss": 2.5})
    read = Path.read_text
    calls: list[Path] = []
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: (calls.append(self), read(self, *a, **k))[1])
    for step in range(2, 50):
        log.add({"step": step, "loss": 1.0 / step})
        log.add({"step": step, "validation_loss": 2.0 / step})
    assert not calls
    log.add({"step": 50, "loss": 0.1, "mfu": 0.5})
    lines = read(folder / "metrics.csv").splitlines()
    assert lines[0] == "step,loss,validation_loss,mfu"
    assert lines[1:3] == ["1,3.0,,", "1,,2.5,"] and lines[-1] == "50,0.1,,0.5"
    assert len(lines) == 1 + len(read_metrics(folder)) == 100


@pytest.mark.usefixtures("fast")
def test_fp16_without_a_valid_scale_gives_up(folder: Path) -> None:
    settings = config(folder, max_steps=60, precision="fp16", eval_interval=60)
    trainer = trainer_of(settings)
    trainer.model.blocks[0].ffn.down.weight.register_hook(lambda gradient: gradient * math.inf)
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=2.0**4)
    with pytest.raises(UserError, match=r"no finite gradient in the last \d+ steps.*trainer.precision=bf16"):
        for step in range(60):
            trainer.progress.step = step
            trainer.update()
    assert 10 <= trainer.progress.skipped < 20 and trainer.scaler.get_scale() < 1


@pytest.mark.usefixtures("fast")
def test_a_run_whose_losses_are_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("modular_gpt.training.validation.Validation.loss", lambda self, *arguments: math.nan)
    with pytest.raises(NonFiniteError, match=r"broke down.*lower optim.learning_rate.*longer schedule.warmup"):
        train(config(folder, final_evaluation=True))
    printed = capsys.readouterr().out
    assert "not finite at any evaluation" in printed and "checkpoints/best" not in printed
    assert "checkpoints/latest" in printed and "Next:" not in printed
    directory = (folder / "runs" / "latest").resolve()
    assert steps_in(directory / FOLDER) and read_metrics(directory)


@pytest.mark.usefixtures("fast")
def test_a_diverging_training_ends_with_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(folder / "text.txt")
    small = ("d_model=16", "n_heads=2", "n_layers=1", "context_length=16")
    steps = ("max_steps=2", "batch_size=2", "eval_interval=2", "eval_batches=1", "sample_tokens=0", "threads=1")
    arguments = [
        *(f"model_size.{value}" for value in small),
        *(f"trainer.{value}" for value in steps),
        "trainer.device=cpu",
    ]
    arguments += ["data=text", f"data.path={text}", f"runs={folder / 'runs'}", "schedule=constant", "schedule.warmup=0"]
    assert mgpt_train([*arguments, "optim.learning_rate=1e30"]) == 2
    output = capsys.readouterr()
    assert output.err.count("error: training broke down: the model's losses are not finite") == 1
    assert "Next:" not in output.out
    assert steps_in(folder / "runs" / "latest" / FOLDER) and read_metrics(folder / "runs" / "latest")


@pytest.mark.usefixtures("fast")
def test_a_validation_text_shorter_than_a_window_is_refused_before_the_first_step(folder: Path) -> None:
    text = write_text(folder / "text.txt")
    data = {"name": "text", "path": str(text), "val_fraction": 0.0005}
    with pytest.raises(
        DataError, match=r"validation text has \d+ tokens.*needs 17: raise data.val_fraction.*model_size"
    ):
        run(config(folder, data=data))
    assert not (folder / "runs").exists()
    assert run(config(folder, data=data, eval_batches=0)).outcome is not None  # evaluates the whole text of any length


@pytest.mark.parametrize(("loss", "perplexity"), [(1.0, math.e), (699.0, math.exp(699.0)), (1e4, math.inf)])
def test_perplexity_overflows_to_infinity(loss: float, perplexity: float) -> None:
    outcome = Outcome(1, 1, 1, 1, 1.0, loss, 1, True, 1.0, 1.0)
    assert outcome.perplexity == perplexity
    assert Outcome(1, 1, 1, 1, 1.0, math.inf, 0, True, 1.0, 1.0).perplexity == math.inf


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(("before", "after"), [("float32", "fp16"), ("fp16", "bf16"), ("fp16", "fp16")])
def test_the_precision_may_change_at_a_resume(before: str, after: str, folder: Path) -> None:
    directory = run(config(folder, max_steps=4, precision=before)).directory
    assert run(config(folder, max_steps=6, precision=after, resume=str(directory))).outcome is not None


@pytest.mark.usefixtures("fast")
def test_the_final_evaluation_is_inside_ordered_sums(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of it torch.compile would recompile."""
    inside: list[str] = []
    ordered, measured = run_module.ordered_sums, run_module.measure

    class Noted:
        def __init__(self, compiled: bool) -> None:
            self.context = ordered(compiled)

        def __enter__(self) -> None:
            inside.append("in")
            self.context.__enter__()

        def __exit__(self, *error: Any) -> None:
            inside.append("out")
            self.context.__exit__(*error)

    monkeypatch.setattr(run_module, "ordered_sums", Noted)
    monkeypatch.setattr(run_module, "measure", lambda *a: (inside.append("measure"), measured(*a))[1])
    run(config(folder))
    assert inside == ["in", "measure", "out"]


class TestRewind:
    def test_later_checkpoints_are_not_deleted_by_a_resume(self, folder: Path) -> None:
        whole = run(config(folder, keep=9)).directory
        first = whole / FOLDER / "step_00000004"
        with pytest.raises(ConfigError, match=r"step_00000008.*step_00000012.*rewind=true.*init_from="):
            run(config(folder, resume=str(first), max_steps=5))
        assert steps_in(whole / FOLDER) == [4, 8, 12]
        with pytest.raises(ConfigError, match="done 12 steps already"):
            run(config(folder, resume=str(whole / FOLDER / "latest")))
        run(config(folder, resume=str(first), max_steps=5, rewind=True))
        assert steps_in(whole / FOLDER) == [4, 5]
        assert "rewind" not in json.loads((whole / "run.json").read_text())["config"]

    @pytest.mark.usefixtures("fast")
    def test_milestones_are_kept(self, folder: Path) -> None:
        directory = run(config(folder, keep=1, keep_every=3, eval_interval=4)).directory
        assert {3, 6, 9, 12} <= set(steps_in(directory / FOLDER)) <= {3, 4, 6, 8, 9, 12}


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({}, {"max_steps": 40}, "-> {}, since the schedule is now over 40 steps"),
        ({}, {"schedule": "constant"}, "-> {}, since the schedule is now constant"),
        ({"schedule": "constant"}, {"max_steps": 40}, ""),
        ({"schedule": "constant"}, {"optim": {"name": "muon", "learning_rate": 0.1}}, "optim.learning_rate is now {}"),
        ({}, {}, ""),
    ],
    ids=str,
)
def test_a_jump_of_the_learning_rate_is_reported(
    before: dict[str, Any], after: dict[str, Any], line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"schedule": {"name": "cosine", "warmup": 2}}
    constant = {"schedule": {"name": "constant", "warmup": 2}}
    before = {**schedule, **({k: v for k, v in before.items() if k != "schedule"}), **(constant if before else {})}
    after = {**after, **(constant if "schedule" in after else {})}
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        directory = run(config(folder, **before)).directory
    output: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *text: output.append(str(text[0])))
    monkeypatch.setattr("modular_gpt.training.recorder.Recorder.say", lambda self, text: None)
    train(config(folder, resume=str(directory), **{**before, **after}))
    lines = [text for text in output if text.startswith("learning rate ")]
    assert len(lines) == bool(line)
    trainer = trainer_of(config(folder, **{**before, **after}))
    rate = f"{trainer.optimizer.learning_rate * trainer.schedule.factor(9):.1e}"
    assert all(line.format(rate) in text for text in lines)


def test_the_validation_loss_does_not_depend_on_the_batch(folder: Path) -> None:
    """The windows of an evaluation do not depend on batch size and accumulation."""
    sizes = [(4, 1), (8, 1), (8, 4), (12, 1), (6, 2), (64, 1)]
    trainers = [trainer_of(config(folder, batch_size=b, gradient_accumulation=a)) for b, a in sizes]
    losses = [trainer.validation.loss(2) for trainer in trainers]
    assert losses == pytest.approx([losses[0]] * len(sizes), abs=1e-6)
    assert trainers[0].validation.loss(1) != pytest.approx(losses[0], abs=1e-6)


def test_a_name_with_an_emoji_draws_without_a_warning(pictures: None, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        directory = run(config(folder, name="a🦙$x", max_steps=4)).directory
    assert (directory / "loss.png").is_file()


@pytest.mark.parametrize("how", ["command", "python"])
def test_each_file_is_hashed_and_read_once_at_a_resume(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Composing the settings verifies the metadata only; training verifies the rest. All tensors are read once."""
    directory = run(config(folder, max_steps=4, ema_decay=0.9)).directory
    counts = {name: Counter[str]() for name in ("hashed", "json", "tensors", "configs")}
    saved = directory / FOLDER / "step_00000004"

    def watch(owner: Any, name: str, counter: str, path_of: Callable[..., Path]) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **keywords: Any) -> Any:
            path = path_of(*args)
            counts[counter].update([path.name] if path.parent.resolve() == saved.resolve() else [])
            return original(*args, **keywords)

        monkeypatch.setattr(owner, name, counted)

    watch(manifest, "sha256_file", "hashed", Path)
    watch(manifest, "load_json_object", "json", Path)
    watch(stored_tensors, "safe_open", "tensors", Path)
    from_dict = GPTConfig.from_dict
    again = json.loads((saved / "config.json").read_text())
    monkeypatch.setattr(
        GPTConfig,
        "from_dict",
        lambda values: (counts["configs"].update(["same"] * (values == again)), from_dict(values))[1],
    )
    if how == "command":
        assert mgpt_train([f"resume={directory}", "trainer.max_steps=6"]) == 0
    else:
        settings, checkpoint = open_run(directory)
        assert set(counts["hashed"]) == {"meta.json"}
        settings.trainer.max_steps = 6
        train(settings, quiet=True, checkpoint=checkpoint)
    files = {path.name for path in saved.iterdir()} - {"manifest.json"}
    assert counts["hashed"] == Counter(files)
    assert counts["json"]["meta.json"] == counts["json"]["config.json"] == 1
    assert counts["tensors"] == Counter(
        {f"{name}.safetensors": 1 for name in ("optimizer", "trainer", "trained")}
    ) + Counter(
        {"model.safetensors": 2}  # once only for the names, to bound the layers of the config
    )
    assert counts["configs"]["same"] == 1
    assert steps_in(directory / FOLDER) == [4, 6]


def test_a_checkpoint_that_changed_after_reading_is_read_again(folder: Path) -> None:
    """The settings were read before the run was locked; the resumed checkpoint is verified afterwards."""
    directory = run(config(folder, max_steps=4)).directory
    settings, checkpoint = open_run(directory)
    settings.trainer.max_steps = 6
    saved = checkpoint.directory
    meta = json.loads((saved / "meta.json").read_text())
    (saved / "meta.json").write_text(json.dumps({**meta, "order": {**meta["order"], "seed": 99}}))
    (saved / "manifest.json").unlink()
    manifest.write_manifest(saved)
    assert not checkpoint.is_current()
    with pytest.raises(CheckpointError, match="was trained with seed=99"):
        train(settings, quiet=True, checkpoint=checkpoint)
