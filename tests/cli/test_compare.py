"""mgpt-compare: arguments, refusals, exit codes, signals, overlays, and Hydra's launchers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modular_gpt.comparison import Plan
from tests.cli.conftest import Run
from tests.fresh import command

TINY = (
    *("model_size.d_model=16", "model_size.n_heads=2", "model_size.n_layers=1", "model_size.context_length=16"),
    *(
        "trainer.max_steps=8",
        "trainer.batch_size=2",
        "trainer.eval_batches=1",
        "trainer.threads=1",
        "trainer.device=cpu",
    ),
)


@pytest.fixture
def overrides(corpus: str) -> list[str]:
    return [*corpus.split(), *TINY]


def directory(folder: Path) -> Path:
    """The directory of the only comparison."""
    (found,) = [path for path in (folder / "compares").iterdir() if not path.is_symlink()]
    return found


def test_a_comparison_and_more_seeds(run: Run, overrides: list[str], folder: Path) -> None:
    answer = run("compare", "attention=mha,mqa", "budget=params", "seeds=1", "lr=shared", *overrides)
    assert answer.code == 0, answer.err
    assert "trial 2/2" in answer.out and "no verdict (n < 3)" in answer.out
    assert "UNTUNED" in answer.out and f"Report: {Path('compares') / directory(folder).name}" in answer.out
    assert {path.name for path in directory(folder).iterdir()} >= {
        *("plan.json", "results.jsonl", "report.html", "report.md", "report.json", "decoding.json"),
        *("inspect-mha.html", "inspect-mqa.html", "model-mha", "model-mqa"),
    }
    page = (directory(folder) / "report.html").read_text()
    assert 'href="inspect-mqa.html"' in page and "Probes: properties that follow from the settings" in page
    assert "Wrong: " not in answer.out
    lines = (directory(folder) / "results.jsonl").read_text().splitlines()
    assert {"conditions", "versions", "loss", "seconds", "config"} <= json.loads(lines[0]).keys()
    answer = run("compare", "resume=compares/latest", "seeds=3", "decoding=false", "pages=false", "require=better")
    assert "trial 6/6" in answer.out and "trial 2/" not in answer.out
    verdicts = json.loads((directory(folder) / "report.json").read_text())["differences"]
    assert answer.code == (0 if verdicts["mqa"]["verdict"] == "better" else 1)


REFUSED = [
    (["attention=mha,gqa"], "a comparison needs a budget"),
    (["attention=mha", "budget=tokens"], "nothing to compare"),
    (["attention=mha,gqa", "budget=token"], "did you mean 'tokens'"),
    (["attention=mha,gqa", "budget=tokens", "seed=1,2"], "give the number of seeds as seeds="),
    (["attention=mha,gqa", "budget=tokens", "optim.learning_rate=1e-3,1e-2"], "use lr=auto, which tunes it"),
    (["attention=mha,gqa", "budget=tokens", "lr=best"], "lr must be auto, shared or a number"),
    (["attention=mha,gqa", "budget=tokens", "atention.window=3"], "no setting"),
    (["attention=mha,gqa", "budget=tokens", "data=python_stdlib,shakespeare"], "the texts differ"),
    (["attention=linear,mha", "pos=alibi", "budget=tokens"], "attention=linear has no score matrix"),
    (["attention=mha,gqa", "budget=tokens", "hydra/sweeper=basic"], "has a sweeper for its trials"),
    (["attention=mha,gqa", "budget=tokens", "hydra.run.dir=here"], "has no effect here"),
    (["resume=nowhere"], "holds no comparison"),
    (["resume=nowhere", "attention=mha,gqa"], "attention=mha,gqa cannot change"),
    (["resume=nowhere", "margin=0.1"], "margin= cannot change"),
    (["none.yaml,other.yaml", "budget=tokens"], "no file 'none.yaml'"),
    (["attention"], "'attention' is no setting and no directory of a run"),
]


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_a_mistake_is_one_sentence(arguments: list[str], sentence: str, run: Run, folder: Path) -> None:
    data = [] if any(a.startswith(("data=", "resume=")) or "=" not in a for a in arguments) else ["data=text"]
    (folder / "text.txt").write_text("the cat sat on the mat. " * 60)
    path = ["data.path=text.txt"] if data else []
    answer = run("compare", *arguments, *data, *path)
    assert answer.code == 2 and answer.err.startswith("error: ") and sentence in answer.err
    assert answer.err.count("\n") == 1 and answer.out == ""
    assert not (folder / "compares").exists()


def test_combinations_and_copies_have_names(run: Run, overrides: list[str]) -> None:
    answer = run("compare", "attention=mha,mha,gqa", "pos=rope,alibi", "budget=tokens", *overrides, "--cfg", "job")
    assert answer.code == 0, answer.err
    names = [line.removeprefix("# variant ") for line in answer.out.splitlines() if line.startswith("# variant ")]
    assert names == ["mha-rope", "mha-alibi", "mha-rope-2", "mha-alibi-2", "gqa-rope", "gqa-alibi"]
    assert "budget: tokens" in answer.out


def test_whole_configurations_from_files(run: Run, overrides: list[str], folder: Path) -> None:
    (folder / "a.yaml").write_text("attention: gqa\nmodel_size: {n_layers: 2}\n")
    (folder / "b.yaml").write_text("model: {attention: {name: swa, window: 4}}\ntrainer: {batch_size: 4}\n")
    answer = run(
        "compare", "a.yaml,b.yaml", "budget=tokens", "seeds=1", "lr=0.01", "decoding=false", "pages=false", *overrides
    )
    assert answer.code == 0, answer.err
    plan = json.loads((directory(folder) / "plan.json").read_text())["variants"]
    assert plan["a"]["model"]["attention"]["name"] == "gqa" and plan["a"]["model"]["n_layers"] == 2
    assert plan["b"]["model"]["attention"]["window"] == 4 and plan["b"]["trainer"]["max_steps"] == 4


def test_variants_of_a_trained_model(run: Run, overrides: list[str], folder: Path) -> None:
    assert run("train", *overrides, "model_size.n_heads=4").code == 0
    source = ["init_from=runs/latest", "data=text", "data.path=text.txt", *TINY[4:]]
    answer = run(
        "compare", "attention=mha,gqa", "budget=tokens", "seeds=1", "lr=0.01", "decoding=false", "pages=false", *source
    )
    assert answer.code == 0, answer.err
    plan = json.loads((directory(folder) / "plan.json").read_text())["variants"]
    assert [plan[name]["model"]["attention"]["name"] for name in ("mha", "gqa")] == ["mha", "gqa"]
    assert {variant["model"]["d_model"] for variant in plan.values()} == {16}


def test_existing_runs_are_overlaid(run: Run, corpus: str, folder: Path) -> None:
    for attention in ("mha", "linear"):
        assert run("train", f"attention={attention}", *corpus.split(), *TINY, "trainer.eval_interval=4").code == 0
    runs = sorted(str(path) for path in (folder / "runs").iterdir() if not path.is_symlink())
    answer = run("compare", *runs)
    assert answer.code == 0, answer.err
    assert "One seed each: no verdict" in answer.out
    assert '"mha"' in answer.out and '"linear"' in answer.out and "trainer.max_steps" not in answer.out
    page = (directory(folder) / "report.html").read_text()
    assert "One seed each" in page and page.count("<svg") == 2
    assert "nothing to compare" in run("compare", runs[0]).err
    assert "has no effect on runs that exist" in run("compare", *runs, "budget=tokens").err


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_signal_ends_within_seconds_and_the_comparison_resumes(
    jobs: int, run: Run, overrides: list[str], folder: Path
) -> None:
    endless = [*overrides, "trainer.max_steps=1000000", "attention=mha,mqa", "budget=tokens", "lr=0.01", "seeds=1"]
    line = [*command(), "-m", "modular_gpt.cli.compare", *endless, f"jobs={jobs}"]
    with subprocess.Popen(line, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        while not (folder / "compares" / "latest" / "plan.json").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, out + err
    assert "finished trials are kept. To resume: mgpt-compare resume=" in err and "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_while_the_plan_is_written(
    number: signal.Signals,
    run: Run,
    overrides: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The directory exists, so the message names it; the plan is whole and resumes."""
    save = Plan.save

    def interrupted(self: Plan, to: Path) -> None:
        signal.raise_signal(number)
        save(self, to)

    quick = ["attention=mha,mqa", "budget=tokens", "lr=0.01", "seeds=1", "decoding=false", "pages=false"]
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "save", interrupted)
        if number == signal.SIGTERM:
            with pytest.raises(SystemExit):
                run("compare", *quick, *overrides)
            message = capsys.readouterr().err
        else:
            answer = run("compare", *quick, *overrides)
            assert answer.code == 128 + number
            message = answer.err
    resume = re.search(r"To resume: mgpt-compare (resume=\S+)", message)
    assert resume is not None and run("compare", resume[1]).code == 0


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_hydra_launchers(launcher: str, run: Run, overrides: list[str], folder: Path, root: Path) -> None:
    plugin = launcher.removesuffix("_local")
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher", reason=f"needs hydra-{plugin}-launcher")
    settings = ["attention=mha,mqa", "budget=tokens", "seeds=1", "lr=shared", f"hydra/launcher={launcher}"]
    answer = subprocess.run(
        [sys.executable, "-m", "modular_gpt.cli.compare", *settings, *overrides],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    launched = json.loads((directory(folder) / "report.json").read_text())
    (directory(folder)).rename(folder / "launched")
    (folder / "compares" / "latest").unlink()
    assert run("compare", *settings[:-1], *overrides, "decoding=false", "pages=false").code == 0
    here = json.loads((directory(folder) / "report.json").read_text())
    assert {name: variant["values"] for name, variant in launched["variants"].items()} == {
        name: variant["values"] for name, variant in here["variants"].items()
    }


def test_a_launcher_that_is_not_installed_is_named(run: Run, overrides: list[str], folder: Path) -> None:
    answer = run("compare", "attention=mha,mqa", "budget=tokens", *overrides, "hydra/launcher=nowhere")
    assert answer.code == 2 and "pip install hydra-nowhere-launcher" in answer.err
    assert not (folder / "compares").exists()
