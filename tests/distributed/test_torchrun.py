"""The command line under torchrun: real processes, real signals."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modular_gpt.checkpoint import find_checkpoint, read_json, verify
from modular_gpt.training import load_config, train
from modular_gpt.training.metrics import read_metrics
from tests import fresh
from tests.training.small import write_text

pytestmark = pytest.mark.distributed
TINY = (
    *("model_size.d_model=16", "model_size.n_heads=2", "model_size.n_layers=1", "model_size.context_length=16"),
    *("trainer.batch_size=4", "trainer.eval_batches=1", "trainer.sample_tokens=4", "trainer.precision=float32"),
    *("trainer.device=cpu", "trainer.final_evaluation=false", "data=text", "data.path=text.txt"),
)
PATIENCE = 300  # seconds, for a loaded machine
ENDLESS = (
    "trainer.max_steps=1000000",
    "trainer.eval_interval=1000000",
    "trainer.save_interval=20",
    "trainer.log_interval=10",
)


@contextmanager
def torchrun(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Two processes of mgpt-train in ``folder``; remaining processes are killed at the end."""
    program = folder / "mgpt-train"  # the script that pip generates for an entry point
    program.write_text(f'#!/bin/sh\nexec {shlex.join(fresh.command())} -m modular_gpt.cli.train "$@"\n')
    program.chmod(0o755)
    if not (folder / "text.txt").exists():
        write_text(folder / "text.txt")
    launch = [
        *fresh.command(),
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--local-addr=127.0.0.1",
        "--no-python",
        str(program),
    ]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    (folder / "pids").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", fresh.PIDS: str(folder / "pids")}
    process = subprocess.Popen(
        [*launch, *TINY, *arguments], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(PATIENCE)


def when_saved(folder: Path, process: subprocess.Popen[str]) -> Path:
    """Wait for the first checkpoint of the run; returns its directory."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        found = list((folder / "runs").glob("*-*/checkpoints/latest"))
        if found:
            return found[0].parents[1]
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint: {process.communicate()[0]}")


def process_of(folder: Path, rank: int) -> int:
    """The id of the process of this rank, which torchrun started through a script."""
    return int((folder / "pids" / str(rank)).read_text())


def kill_between_saves(process: int, directory: Path) -> None:
    """Kill the first process outside of a save, during which the other one would wait without a timeout.

    Every tenth step is logged, and every twentieth step is saved after it is logged.
    """
    while True:
        os.kill(process, signal.SIGSTOP)
        time.sleep(0.01)
        entries = read_metrics(directory)
        if entries and entries[-1]["step"] % 20 == 10:
            break
        os.kill(process, signal.SIGCONT)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)


def test_stopped_by_a_signal_and_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM to one of two processes stops both at the same step; torchrun resumes, and then one process."""
    with torchrun(folder, *ENDLESS) as process:
        directory = when_saved(folder, process)
        os.kill(process_of(folder, 1), signal.SIGTERM)
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    stopped = re.findall(r"Stopped after step (\d+), which is saved", output)
    assert len(stopped) == 1
    step = int(stopped[0])
    assert find_checkpoint(directory, prefer="latest").name == f"step_{step:08}"
    assert "Traceback" not in output.partition("torch.distributed.elastic")[0].partition("Traceback (most recent")[0]

    last = step + 4
    with torchrun(folder, f"resume={directory}", f"trainer.max_steps={last}") as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.count("Next: mgpt-generate") == 1
    assert [path.name for path in (folder / "runs").iterdir() if not path.is_symlink()] == [directory.name]
    info = read_json(directory / "run.json")
    assert (info["parallel"], info["processes"]) == ("ddp", 2)
    steps = [entry["step"] for entry in read_metrics(directory) if "loss" in entry]
    assert steps == sorted(set(steps))

    monkeypatch.chdir(folder)
    config = load_config(directory)
    config.trainer.max_steps = last + 1
    assert train(config, quiet=True).outcome is not None


def test_one_process_killed(folder: Path) -> None:
    with torchrun(folder, *ENDLESS) as process:
        directory = when_saved(folder, process)
        kill_between_saves(process_of(folder, 0), directory)
        output, _ = process.communicate(timeout=PATIENCE)  # the timeout of a lost connection is longer
    assert process.returncode != 0
    assert output.count("error: process 1 of 2 lost another process (") == 1, output
    assert f"resume={directory.relative_to(folder)}" in output
    verify(find_checkpoint(directory, prefer="latest"))


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("trainer.batch_sizee=4", "no setting 'batch_sizee' of trainer"),
        ("trainer.batch_size=5", "2 processes cannot share micro-batches of 5 rows evenly"),
    ],
)
def test_a_mistake_is_reported_once(argument: str, sentence: str, folder: Path) -> None:
    with torchrun(folder, argument) as process:
        output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert re.findall("^error: .*", output, re.MULTILINE) == [line for line in output.splitlines() if sentence in line]
    assert output.count(sentence) == 1
    assert not (folder / "runs").exists()
