"""A folder with a small text for each test; token files are shared by all tests of a session."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Token files are cached in a folder of the session."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of many runs without faults: no plots and no fsync."""
    monkeypatch.setattr("modular_gpt.training.recorder.plot_losses", lambda *arguments: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the text and the runs of a test."""
    return tmp_path
