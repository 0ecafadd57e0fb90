"""A checkpoint and a run that an earlier version wrote (``written_by_0_1_0``) load and resume."""

import shutil
from pathlib import Path

import pytest
import torch

from modular_gpt.checkpoint import load_checkpoint, verify
from modular_gpt.training import load_config, train
from modular_gpt.training.recorder import read_metrics

HERE = Path(__file__).parent / "written_by_0_1_0"
# Losses that version computed after resuming from step 8: gqa, moe, rmsnorm, dropout, averaged weights.
LOSSES = [2.5019357204437256, 2.5017619132995605, 2.484931230545044, 2.462419271469116]
LOADED = 2.4959006309509277  # loss of its weights on the text below


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run beside its text in the working directory."""
    shutil.copytree(HERE, tmp_path / "old")
    for name in ("best", "latest"):  # links, which a source archive would not keep
        (tmp_path / "old" / "run" / "checkpoints" / name).symlink_to("step_00000008")
    monkeypatch.chdir(tmp_path / "old")
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    return Path("run")


@pytest.mark.parametrize("name", ["run", "run/checkpoints/latest", "run/checkpoints/step_00000008"])
def test_its_checkpoint_loads(run: Path, name: str) -> None:
    verify(run / "checkpoints" / "step_00000008")
    checkpoint = load_checkpoint(name)
    ids = torch.tensor([checkpoint.tokenizer.encode("the cat sat on")])
    with torch.no_grad():
        loss = checkpoint.model(ids[:, :-1], ids[:, 1:]).loss.item()
    assert loss == pytest.approx(LOADED, rel=1e-5)


def test_it_resumes_as_that_version_did(run: Path) -> None:
    config = load_config(run)
    config.trainer.max_steps = 12
    directory = train(config, quiet=True).directory
    losses = {entry["step"]: entry["loss"] for entry in read_metrics(directory) if "loss" in entry}
    assert [losses[step] for step in (9, 10, 11, 12)] == pytest.approx(LOSSES, rel=1e-5)
