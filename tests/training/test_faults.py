"""Real signals to real processes at any time: checkpoints stay intact, and resumed runs end bitwise equal."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modular_gpt.checkpoint import FOLDER, find_checkpoint, verify
from modular_gpt.core.atomic_files import MARK
from modular_gpt.core.errors import ConfigError
from tests.fresh import processes
from tests.training.small import (
    assert_same_ending,
    ending,
    run,
    run_in_process,
    run_some_steps,
    run_when_told,
    run_with_fault,
    stop_after,
    write_text,
)
from tests.training.small import one_layer as config

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.fixture
def start() -> Callable[..., Any]:
    def started(target: Callable[..., None], *args: Any) -> Any:
        process = processes().Process(target=target, args=args)
        process.start()
        return process

    return started


def plain(folder: Path, resume: Path | None = None, **settings: Any) -> dict[str, Any]:
    """Plain settings, which can be sent to another process."""
    values = config(folder, **settings).to_dict()
    return {**values, "resume": None if resume is None else str(resume)}


def the_run(folder: Path) -> Path | None:
    """Wait for the first checkpoint of the only run below ``folder``; returns its directory."""
    runs = [path for path in (folder / "runs").glob("*-gpt") if list((path / FOLDER).glob("step_????????"))]
    return runs[-1] if runs else None


def wait_for_a_checkpoint(folder: Path, process: Any, before: frozenset[str] = frozenset()) -> None:
    """Wait until the run has checkpoints other than ``before``, bounded by the timeout of the test."""
    while steps_saved(folder) == before:
        assert process.is_alive()
        time.sleep(0.001)


def steps_saved(folder: Path) -> frozenset[str]:
    """The names of its checkpoints."""
    directory = the_run(folder)
    return frozenset(path.name for path in (directory / FOLDER).glob("step_????????")) if directory else frozenset()


LONG = {"max_steps": 30, "save_interval": 1, "eval_interval": 10, "sample_tokens": 1}


@pytest.fixture
def whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Function that trains without faults and without fsync, for comparison."""

    def trained(**settings: Any) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", lambda handle: None)
            patch.setattr("modular_gpt.training.recorder.plot_losses", lambda *arguments: None)
            return run(config(folder, **{"runs": str(folder / "whole"), **settings})).directory

    return trained


KILLS = 5


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_times(seed: int, start: Callable[..., Any], whole: Callable[..., Path], folder: Path) -> None:
    """Every step is saved, so that most kills hit a save. The training is long enough for every kill."""
    settings = {**LONG, "keep": 1 + seed % 2, "optim": ("adamw", "muon")[seed // 2], "model": {"dropout": 0.1}}
    expected = whole(**settings)
    numbers = random.Random(seed)
    for _ in range(KILLS):
        before = steps_saved(folder)
        process = start(run_some_steps, plain(folder, the_run(folder), **settings), 5)
        wait_for_a_checkpoint(folder, process, before)
        time.sleep(numbers.uniform(0, 0.03))  # a step and its save take about 0.01 s
        process.kill()
        process.join()
        assert process.exitcode == -KILL
    process = start(run_in_process, plain(folder, the_run(folder), **settings))
    process.join()
    assert process.exitcode == 0
    directory = the_run(folder)
    assert directory is not None
    assert_same_ending(expected, directory)
    assert not list((directory / FOLDER).glob(f"*{MARK}*"))


SAVE_CALLS = {
    "os.fsync": 9,  # 5 files, the directory, its parent, and the directory of each link
    "os.rename": 1,
    "os.replace": 2,
    "os.symlink": 2,
    "shutil.rmtree": 2,
}


@pytest.mark.parametrize("name", SAVE_CALLS)
def test_killed_at_every_call_that_writes(
    name: str, start: Callable[..., Any], whole: Callable[..., Path], folder: Path
) -> None:
    """A kill before the k-th fsync, rename, link and removal of the second save; one checkpoint always loads."""
    settings = {"max_steps": 2, "save_interval": 1, "eval_interval": 2, "keep": 1, "sample_tokens": 0}
    expected = whole(**settings)
    module, _, function = name.rpartition(".")
    survived = 0
    for call in range(1, SAVE_CALLS[name] + 1):
        place = folder / f"{name}{call}"
        place.mkdir()
        (place / "text.txt").write_bytes((folder / "text.txt").read_bytes())
        process = start(
            run_with_fault, plain(folder, runs=str(place / "runs"), **settings), module, function, call, KILL,
            f"step_{2:08}",
        )  # fmt: skip
        process.join()
        assert process.exitcode == -KILL, f"call {call}"
        directory = the_run(place)
        assert directory is not None, f"call {call}"
        verify(find_checkpoint(directory, prefer="latest"))
        step = ending(directory)[1]["step"]
        survived += step == 1
        if step < 2:
            assert_same_ending(expected, whole(**settings, resume=str(directory)))
    assert name in ("os.replace", "os.symlink", "shutil.rmtree") or survived


# A function, the number of its interrupted call, and the last finished step.
STAGES = {
    "training": ("modular_gpt.training.trainer", "Trainer.update", 3, 3),
    "evaluation": ("modular_gpt.training.validation", "Validation.loss", 1, 4),
    "sampling": ("modular_gpt.training.validation", "Validation.sample", 1, 4),
    "save": ("modular_gpt.training.checkpointing", "save_checkpoint", 1, 5),
}


@pytest.mark.parametrize("number", [TERM, INT], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", STAGES)
def test_stopped_by_a_signal(
    stage: str, number: int, start: Callable[..., Any], whole: Callable[..., Path], folder: Path
) -> None:
    """The run ends with the step of the signal, or with the next one after a save."""
    expected = whole()
    *place, last = STAGES[stage]
    process = start(run_with_fault, plain(folder), *place, number)
    process.join()
    assert process.exitcode == 128 + number
    directory = the_run(folder)
    assert directory is not None
    assert ending(directory)[1]["step"] == last
    assert_same_ending(expected, whole(resume=str(directory)))


EARLY = {
    "start-up": ("modular_gpt.training.run", "choose_device"),
    "data preparation": ("modular_gpt.data.prepare", "prepare"),
    "the model": ("modular_gpt.training.run", "build_trainer"),
}


@pytest.mark.parametrize("number", [TERM, INT], ids=lambda number: number.name)
@pytest.mark.parametrize("stage", EARLY)
def test_ended_before_the_first_step(
    stage: str, number: int, start: Callable[..., Any], whole: Callable[..., Path], folder: Path, cache: Path
) -> None:
    process = start(run_with_fault, plain(folder), *EARLY[stage], 1, number)
    process.join()
    assert process.exitcode not in (0, None)
    assert the_run(folder) is None
    assert not list(cache.rglob(f"*{MARK}*"))
    whole()


def test_a_second_signal_ends_at_once(start: Callable[..., Any], folder: Path) -> None:
    """The first one requests a graceful stop, which would take long here; the previous checkpoint stays."""
    settings = {**LONG, "max_steps": 100_000}
    process = start(run_in_process, plain(folder, **settings))
    wait_for_a_checkpoint(folder, process)
    for _ in range(200):
        if process.is_alive():
            process.terminate()
            time.sleep(0.001)
    process.join()
    assert process.exitcode not in (0, None)
    directory = the_run(folder)
    assert directory is not None
    verify(find_checkpoint(directory, prefer="latest"))


@pytest.mark.parametrize("number", [2, 3, 4])
def test_of_several_processes_in_one_directory_one_resumes(
    number: int, start: Callable[..., Any], whole: Callable[..., Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 30, "eval_interval": 10}
    expected = whole(**settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        directory = run(config(folder, **settings)).directory
    go = folder / "go"
    processes = [start(run_when_told, plain(folder, directory, **settings), str(go)) for _ in range(number)]
    while sum(process.is_alive() for process in processes) > 1:
        time.sleep(0.001)
    go.touch()
    for process in processes:
        process.join()
    codes = sorted(process.exitcode for process in processes)
    assert codes == [0] + [1] * (number - 1)
    assert_same_ending(expected, directory)


@pytest.mark.parametrize("number", [KILL, TERM, INT], ids=lambda number: number.name)
def test_the_lock_of_an_ended_process_is_free(number: int, start: Callable[..., Any], folder: Path) -> None:
    """While the process runs, its run is refused by every path."""
    process = start(run_in_process, plain(folder, **{**LONG, "max_steps": 100_000}))
    wait_for_a_checkpoint(folder, process)
    directory = the_run(folder)
    assert directory is not None
    latest = find_checkpoint(directory, prefer="latest")
    for path in (directory, directory / FOLDER, directory / FOLDER / "latest", latest, folder / "runs" / "latest"):
        with pytest.raises(ConfigError, match="another process trains in"):
            run(config(folder, resume=str(path), **LONG))
    os.kill(process.pid, number)
    process.join()
    step = ending(directory)[1]["step"]
    assert run(config(folder, resume=str(directory), **{**LONG, "max_steps": step + 1})).outcome is not None


@pytest.mark.parametrize("left", ["", "12345", "not a number"])
def test_a_lock_file_that_is_not_held(left: str, whole: Callable[..., Path], folder: Path) -> None:
    """A lock belongs to a process, not to the content of the file."""
    directory = whole()
    (directory / "lock").write_text(left)
    assert run(config(folder, resume=str(directory), max_steps=13)).outcome is not None


def test_two_new_processes_train_equally(start: Callable[..., Any], folder: Path) -> None:
    write_text(folder / "text.txt")
    places = [folder / name for name in ("one", "other")]
    settings = [plain(folder, runs=str(place / "runs"), model={"dropout": 0.1}) for place in places]
    for process in [start(run_in_process, values) for values in settings]:
        process.join()
    one, other = (the_run(place) for place in places)
    assert one is not None and other is not None
    assert_same_ending(one, other)


def test_many_runs_started_at_once(start: Callable[..., Any], folder: Path) -> None:
    write_text(folder / "text.txt")
    settings = {"max_steps": 1, "sample_tokens": 0}
    processes = [start(run_in_process, plain(folder, **settings)) for _ in range(20)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 20
    runs = [path for path in (folder / "runs").iterdir() if not path.is_symlink()]
    assert len(runs) == 20
    assert (folder / "runs" / "latest").resolve() in [path.resolve() for path in runs]
