"""mgpt-train: files and names of runs, resuming, several runs, and exit codes."""

import functools
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from modular_gpt import compose
from modular_gpt.cli import sweep as _multirun
from modular_gpt.training import run as training
from modular_gpt.training.metrics import read_metrics
from modular_gpt.training.run import RunResult
from tests.cli.conftest import TINY, Answer, Run


def runs(folder: Path) -> list[str]:
    """The names of the runs, without date and time."""
    names = sorted(path.name for path in (folder / "runs").iterdir() if not path.is_symlink())
    return [re.sub(r"^\d{8}-\d{6}-\d{6}-", "", name) for name in names]


def test_a_run_makes_its_directory_and_nothing_else(trained: Answer, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"runs", "cache", "text.txt"}
    assert "mgpt-generate" in trained.out
    config = yaml.safe_load((folder / "runs" / "latest" / "config.yaml").read_text())
    assert config["model"]["d_model"] == 16 and config["trainer"]["max_steps"] == 2


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((), "gpt"),
        (("attention=gqa", "ffn=moe"), "gqa-moe"),
        (("attention=gqa", "attention.n_kv_heads=1", "trainer.max_steps=9"), "gqa-n_kv_heads=1"),
        (("name=mine", "attention=gqa"), "mine"),
        (("experiment=shakespeare_char",), "shakespeare_char"),
        (("data=text", "data.path=some/where.txt"), "text"),
        (("model.topology=post", "seed=3"), "topology=post-seed=3"),
    ],
)
def test_a_run_is_named_after_its_settings(arguments: tuple[str, ...], name: str) -> None:
    assert compose(*arguments).name == name


def test_a_long_name_is_a_valid_file_name() -> None:
    name = compose(*(f"model.init_std=0.{'1' * 30}", "model.embed_scale=0.333333333333333333333", "seed=77777")).name
    assert 40 < len(name) <= 60


def test_resume_keeps_settings_that_are_not_given(run: Run, corpus: str, folder: Path) -> None:
    first = run("train", *corpus.split(), *TINY, "attention=gqa", "attention.n_kv_heads=1", "optim=muon", "ffn=swiglu")
    assert first.code == 0, first.err
    more = run("train", "resume=runs/latest", "trainer.max_steps=4")
    assert more.code == 0, more.err
    assert "from step 2" in more.out and len(runs(folder)) == 1
    config = yaml.safe_load((folder / "runs" / "latest" / "config.yaml").read_text())
    assert (config["trainer"]["max_steps"], config["trainer"]["batch_size"]) == (4, 2)
    assert config["model"]["attention"]["name"] == "gqa" and config["optim"]["name"] == "muon"
    again = run("train", "resume=runs/latest")
    assert again.code == 2 and "4 steps already" in again.err
    other = run("train", "resume=runs/latest", "trainer.max_steps=6", "attention=mha")
    assert other.code == 2 and "attention" in other.err
    assert run("train", "resume=runs/latest", "experiment=shakespeare_char").code == 2


def test_the_speedrun_starts_at_the_uniform_loss_and_learns_quickly(run: Run, corpus: str, folder: Path) -> None:
    arguments = ("experiment=speedrun", *corpus.split(), *TINY, "model_size.d_model=32", "trainer.max_steps=30")
    answer = run("train", *arguments, "trainer.eval_interval=30", "trainer.log_interval=1", "trainer.compile=false")
    assert answer.code == 0, answer.err
    metrics = read_metrics(folder / "runs" / "latest")
    first, last = metrics[0]["loss"], [entry for entry in metrics if "validation_loss" in entry][-1]
    assert first == pytest.approx(math.log(11), abs=1e-4)  # the text has 11 different characters
    assert last["step"] == 30 and last["validation_loss"] < 0.5


def test_several_runs_and_their_table(run: Run, corpus: str, folder: Path) -> None:
    answer = run("train", "--multirun", *corpus.split(), *TINY, "attention=mha,linear", "pos=learned,alibi", "seed=1")
    assert answer.code == 2  # one of the four combinations is invalid
    assert runs(folder) == ["multirun", "mha-learned", "mha-alibi", "linear-learned"]
    assert {path.name for path in folder.iterdir()} == {"runs", "cache", "text.txt"}
    table = answer.out[answer.out.rindex("\nrun ") :].splitlines()
    rows = {line.split()[0]: line for line in table[3:-2]}
    assert list(rows) == ["mha-learned", "mha-alibi", "linear-learned", "linear-alibi"]
    for name in ("mha-learned", "mha-alibi", "linear-learned"):
        parameters, loss, bits, speed = rows[name].split()[1:]
        assert int(parameters.replace(",", "")) > 3000 and 1 < float(loss) < 6
        assert float(bits) == pytest.approx(float(loss) / 0.6931, rel=1e-2)  # characters of one byte each
        assert float(speed.replace(",", "")) > 0
    assert "refused: attention=linear has no score matrix" in rows["linear-alibi"]


def test_runs_in_other_processes_leave_their_rows(
    run: Run, corpus: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hydra launcher may run jobs on a cluster: this process does not share their variables."""
    monkeypatch.setattr(_multirun, "Sweep", functools.partial(_multirun.Sweep, process=-1))
    answer = run("train", "-m", *corpus.split(), *TINY, "attention=mha,linear", "pos=alibi")
    assert answer.code == 2
    table = answer.out[answer.out.rindex("\nrun ") :].splitlines()
    assert [line.split()[0] for line in table[3:-2]] == ["mha", "linear"]
    assert "refused: attention=linear has no score matrix" in table[4]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_hydra_launchers(launcher: str, root: Path, corpus: str, folder: Path) -> None:
    plugin = launcher.removesuffix("_local")
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason=f"needs hydra-{plugin}-launcher")
    arguments = [*corpus.split(), *TINY, f"hydra/launcher={launcher}", "seed=1,2"]
    answer = subprocess.run(
        [sys.executable, "-m", "modular_gpt.cli.train", "-m", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    table = answer.stdout[answer.stdout.rindex("\nrun ") :].splitlines()
    assert [line.split()[:3] for line in table[3:-2]] == [["default", "(2", "seeds)"]]
    assert sorted(runs(folder)) == ["multirun", "seed=1", "seed=2"]


def test_several_runs_with_a_name_for_all(run: Run, corpus: str, folder: Path) -> None:
    answer = run("train", "-m", *corpus.split(), *TINY, "trainer.sample_tokens=0", "name=try", "seed=range(1,3)")
    assert answer.code == 0, answer.err
    assert runs(folder) == ["multirun", "try-seed=1", "try-seed=2"]


def test_a_text_in_several_runs(run: Run, corpus: str, folder: Path) -> None:
    (folder / "text #2.txt").write_text((folder / "text.txt").read_text())
    arguments = ["tokenizer=char", *TINY, "trainer.max_steps=1", "seed=1,2", "data=text", "data.path=text #2.txt"]
    assert run("train", "-m", *arguments).code == 0
    assert len(runs(folder)) == 3


def result(ended_by: int | None) -> RunResult:
    return RunResult(Path("runs/x"), ended_by, None, None)


def test_ctrl_c_handled_by_the_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda config, **_: result(signal.SIGINT))
    assert run("train").code == 130
    monkeypatch.setattr(training, "train", lambda config, **_: result(signal.SIGTERM))
    assert run("train").code == 143


def test_ctrl_c_at_any_other_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: Any, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    for arguments in ([], ["--multirun", "seed=1,2"]):
        answer = run("train", *arguments)
        assert answer.code == 130 and answer.err == "interrupted\n"


def test_ctrl_c_ends_the_runs_that_would_follow(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def stopped(config: Any) -> RunResult:
        seeds.append(config.seed)
        return result(signal.SIGINT)

    monkeypatch.setattr(training, "train", stopped)
    answer = run("train", "--multirun", "seed=1,2,3")
    assert answer.code == 130 and seeds == [1]
    assert "seed=1  stopped; resume=runs/x" in answer.out and "Traceback" not in answer.err


def test_unexpected_exceptions_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Any, **_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(training, "train", broken)
    for arguments in ([], ["--multirun", "seed=1,2"]):
        with pytest.raises(ZeroDivisionError):
            run("train", *arguments)


def test_compose_inside_an_initialised_hydra(folder: Path) -> None:
    (folder / "theirs").mkdir()
    (folder / "theirs" / "app.yaml").write_text("a: 1\n")
    older = "1.2" if hydra.__version__.startswith("1.3") else None
    with hydra.initialize_config_dir(str(folder / "theirs"), version_base=older):
        base = hydra.version.getbase()
        assert compose("attention=mla").model.attention.name == "mla"
        assert GlobalHydra.instance().is_initialized()
        assert hydra.compose("app").a == 1
        assert hydra.version.getbase() == base
    assert compose("pos=rope").model.pos.name == "rope"
    assert not HydraConfig.initialized()


def test_compose_accepts_a_config_folder(folder: Path) -> None:
    (folder / "mine" / "attention").mkdir(parents=True)
    (folder / "mine" / "attention" / "near.yaml").write_text("defaults: [swa_schema]\nwindow: 7\n")
    assert compose("attention=near", config_dir="mine").model.attention.window == 7
