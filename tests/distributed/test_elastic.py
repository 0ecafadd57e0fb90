"""A run resumes with another number of processes or another strategy: equal batches and losses."""

from pathlib import Path
from typing import Any

import pytest

from modular_gpt.checkpoint import find_checkpoint
from tests.distributed.cases import failing_shards, slow_first_process, whole_run
from tests.distributed.pair import Pair
from tests.training.small import MUON, config

EXACT = 5e-6
SETTINGS: dict[str, Any] = {
    "max_steps": 12,
    "log_interval": 1,
    "eval_interval": 6,
    "gradient_accumulation": 2,
    "final_evaluation": True,
    "sample_tokens": 1,
}
WAYS = [
    ["none", "ddp"],
    ["ddp", "none"],
    ["ddp", "none", "ddp"],
    ["ddp", "fsdp", "ddp"],
    ["fsdp", "none", "fsdp"],
    ["none", "fsdp"],
    ["shards", "none", "shards"],
    ["shards", "ddp", "fsdp"],
]


SHARDS = {"name": "fsdp", "sharded_checkpoints": True}


@pytest.fixture(scope="module")
def undisturbed(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, list[Any]], dict[int, float]]:
    """Batches and losses by step of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODULAR_GPT_CACHE", str(cache))
        return whole_run(config(folder, **MUON, **SETTINGS).to_dict())[1:]


@pytest.mark.parametrize("ways", WAYS, ids="-".join)
def test_elastic_resume(
    ways: list[str], pair: Pair, folder: Path, undisturbed: tuple[dict[int, list[Any]], dict[int, float]]
) -> None:
    settings = config(folder, runs=str(folder / "runs"), **MUON, **SETTINGS).to_dict()
    batches, losses = undisturbed
    directory = None
    for number, name in enumerate(ways, 1):
        now = {**settings, "parallel": SHARDS if name == "shards" else name, "resume": directory}
        stop = 12 // len(ways) * number if number < len(ways) else None
        answers = [whole_run(now, stop)] if name == "none" else pair(whole_run, now, stop)
        directory = answers[0][0]
        assert {answer[0] for answer in answers} == {directory}
        for step in answers[0][1]:
            rows = [row for answer in answers for row in answer[1][step]]
            assert sorted(rows) == sorted(batches[step])
        files = {path.name for path in find_checkpoint(directory, prefer="latest").iterdir()}
        assert ("model.safetensors" in files) == (name != "shards") != any("shard-" in file for file in files)
    found = answers[0][2]
    assert found.keys() == losses.keys() == set(range(1, 13))
    assert max(abs(found[step] - losses[step]) for step in losses) < EXACT


@pytest.mark.parametrize("background", [False, True])
def test_shards_that_one_process_cannot_write(background: bool, pair: Pair, folder: Path) -> None:
    """No process counts that save, also if threads write; training continues with the next save."""
    settings = config(folder, max_steps=9, eval_interval=3, keep=5, sample_tokens=0, async_save=background)
    (steps, logged), (_, silent) = pair(failing_shards, {**settings.to_dict(), "parallel": SHARDS}, 2)
    assert steps == [3, 9] and not silent
    assert len(logged) == 1 and logged[0].startswith("step 6: cannot save")
    assert logged[0].endswith("the training continues, and the next save is tried")


@pytest.mark.parametrize("place", ["save_checkpoint", "sample"])
def test_a_slow_first_process_is_not_taken_for_a_lost_one(place: str, pair: Pair, folder: Path) -> None:
    """While it saves or samples, the other one waits outside of collectives, which ``parallel.timeout`` ends."""
    settings = config(folder, max_steps=3, eval_interval=2, parallel="ddp", runs=str(folder / "runs")).to_dict()
    assert pair(slow_first_process, settings, place, str(folder)) == [3, 3]
