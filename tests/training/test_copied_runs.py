"""Resuming runs that were copied, converted or damaged works, or one sentence names the reason."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modular_gpt.checkpoint import FOLDER, MANIFEST, find_checkpoint
from modular_gpt.checkpoint.manifest import write_manifest
from modular_gpt.cli import convert
from modular_gpt.core.errors import UserError
from modular_gpt.training.metrics import METRICS, read_metrics
from modular_gpt.training.recorder import SAMPLES
from modular_gpt.training.run import load_config
from modular_gpt.training.run_directory import LOCK, lock_run
from tests.training.small import one_layer as config
from tests.training.small import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with averaged weights."""
    folder = tmp_path_factory.mktemp("trained")
    return run(config(folder, max_steps=4, save_interval=2, eval_interval=2, ema_decay=0.9)).directory


def resumed(directory: Path, precision: str = "float32") -> Path:
    settings = load_config(directory)
    settings.trainer.max_steps, settings.trainer.precision = 6, precision
    return run(settings).directory


def test_a_copy_with_links_followed_resumes(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=False)
    resumed(copy)
    assert find_checkpoint(copy, "latest").name == "step_00000006"
    assert (copy / FOLDER / "latest").is_symlink()


@pytest.mark.parametrize("missing", ["optimizer", "trainer", "trained"])
@pytest.mark.parametrize("how", ["removed", "empty"])
def test_a_checkpoint_without_its_state_is_refused(missing: str, how: str, trained: Path, tmp_path: Path) -> None:
    """Fresh moments, another random state or averages as weights would change the training."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    checkpoint = find_checkpoint(copy, "latest")
    (checkpoint / f"{missing}.safetensors").unlink()
    if how == "empty":
        save_file({}, checkpoint / f"{missing}.safetensors")
    seal_again(checkpoint)
    with pytest.raises(UserError, match=rf"has no {missing}\.safetensors.*init_from="):
        resumed(copy)


def test_a_converted_checkpoint_has_no_training(trained: Path, tmp_path: Path) -> None:
    assert convert.main([f"checkpoint={trained}", "to=checkpoint", f"path={tmp_path / 'converted'}"]) == 0
    with pytest.raises(UserError, match="no training"):
        resumed(tmp_path / "converted")


def test_incomplete_metadata(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    checkpoint = find_checkpoint(copy, "latest")
    meta = json.loads((checkpoint / "meta.json").read_text())
    del meta["progress"], meta["order"]
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    seal_again(checkpoint)
    with pytest.raises(UserError, match="lacks order, progress"):
        resumed(copy)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("progress", 3, r"has progress=3"),
        ("progress", {"step": "x"}, r"progress\.step must be a whole number"),
        ("progress", {"best_loss": 1.0, "stepp": 1}, r"progress: no setting 'stepp'"),
        ("order", [], r"has order=\[\]"),
        ("data", None, r"has data=None"),
        ("optimizer", 3, r"has optimizer=3"),
        ("averaged_steps", "x", r"has averaged_steps='x'"),
        ("scaler", {"scale": "x"}, r"meta\.json' holds the state of another training"),
        ("run", {"trainer": 5}, r"cannot be used here"),
        ("run", 5, r"no run to resume"),
    ],
)
def test_metadata_of_the_wrong_type(name: str, value: object, reason: str, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    checkpoint = find_checkpoint(copy, "latest")
    meta = json.loads((checkpoint / "meta.json").read_text())
    (checkpoint / "meta.json").write_text(json.dumps({**meta, name: value}))
    seal_again(checkpoint)
    with pytest.raises(UserError, match=reason) as caught:
        resumed(copy, "fp16" if name == "scaler" else "float32")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [None, torch.zeros(5, dtype=torch.uint8), torch.zeros(5000)])
def test_an_invalid_random_state(numbers: torch.Tensor | None, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    path = find_checkpoint(copy, "latest") / "trainer.safetensors"
    save_file({"other": torch.ones(1), **({} if numbers is None else {"random": numbers})}, path)
    seal_again(path.parent)
    with pytest.raises(UserError, match=r"trainer\.safetensors' holds the state of another training"):
        resumed(copy)


def seal_again(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint)


DAMAGED_LINES = (
    b"[" * 100_000,
    b'{"step": {"a": ' * 500,
    b'{"step": "two", "loss": 1.0}',
    b'{"step": 2, "loss": null}',
    b'{"step": 2, "loss": [',
    b"\xff\xfe",
)


def test_damaged_metrics_and_samples_are_ignored(trained: Path, tmp_path: Path) -> None:
    """They are not part of a checkpoint, so they are not verified, and no training depends on them."""
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, symlinks=True)
    whole = read_metrics(copy)
    with (copy / METRICS).open("ab") as metrics, (copy / SAMPLES).open("ab") as samples:
        metrics.write(b"\n".join([*DAMAGED_LINES, b""]))
        samples.write(b"=== step \xff\n=== step 2\xc2\xb2\n    | x\n")
    assert read_metrics(copy) == whole
    resumed(copy)
    entries = read_metrics(copy)
    assert entries[: len(whole)] == whole and entries[-1]["step"] == 6


def test_a_read_only_run_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()  # like a read-only file system, it refuses to open the lock for writing
    with pytest.raises(UserError, match="cannot be written"), lock_run(tmp_path):
        pass
