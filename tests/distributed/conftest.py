"""One pair of processes, and one group of four, for all tests of a worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed.pair import Pair


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of the token files of all cases."""
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture(autouse=True)
def same_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODULAR_GPT_CACHE", str(cache))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pair(cache: Path) -> Iterator[Pair]:
    both = Pair(cache)
    yield both
    both.end()


@pytest.fixture(scope="session")
def four(cache: Path) -> Iterator[Pair]:
    """A group of four processes."""
    world = Pair(cache, 4)
    yield world
    world.end()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of the text and the runs of a test."""
    return tmp_path
