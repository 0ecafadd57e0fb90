"""Common set-up of all tests: one torch thread, fixed seeds, no network, and the development files."""

import gc
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Sockets are created in the temporary directory, and the path of a socket is limited to about 100 characters.
if len(tempfile.gettempdir()) > 50 and os.access("/tmp", os.W_OK):
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

# The workers share a compile cache that is new in each session: a killed test may have left an incomplete library in
# the default directory.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="modular-gpt-compiled-")

# Set before the libraries are imported, which read these variables.
os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg", TOKENIZERS_PARALLELISM="false")
# Trust the vector instructions reported by the processor; otherwise the compiler tests each one in a process, in
# fourteen seconds.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
os.environ.setdefault("TORCH_DYNAMO_RUN_GC_AFTER_COMPILE", "0")  # a collection after each graph

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # files for development that are not part of the repository
GPT2_CACHE_FILES = (
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",  # tiktoken's cache names of GPT-2's vocab.bpe
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",  # and encoder.json
)

# Generating examples may be slow on a loaded machine; no examples are stored between runs.
slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None, suppress_health_check=slow
)
hypothesis.settings.load_profile("repeatable")
gc.set_threshold(100_000, 20, 50)  # each collection visits all objects of the libraries
torch.set_num_threads(1)  # the workers share the cores, and sums are reproducible
# The compiler flushes the processor's caches to time the guards of each graph, in a tenth of the time of a small one.
torch._C._dynamo.guards.profile_guard_manager = lambda *arguments: 0.0
if not torch.accelerator.is_available():
    # torch.manual_seed records the stack for each absent accelerator, which takes half a millisecond.
    for absent in (torch.cuda, torch.xpu, torch.mtia):
        absent.manual_seed_all = lambda seed: None  # type: ignore[assignment]


# The tests of `make check`, under a minute on two cores: fast ones that catch most mistakes.
QUICK = (
    *("tests/architecture", "tests/config", "tests/model", "tests/components/test_laws.py"),
    *("tests/components/test_coverage.py", "tests/components/test_references.py", "tests/generation/test_sampling.py"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="run only the fast tests of `make check`")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick") and config.args_source is not pytest.Config.ArgsSource.ARGS:
        config.args = [str(ROOT / path) for path in QUICK]


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--quick``, run the laws only with the default settings of components; otherwise run slow tests first.

    A slow test at the end would leave the other workers idle.
    """
    if not config.getoption("--quick"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)
        return
    kept = [item for item in items if _is_quick(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let a worker report once per test: all six messages take longer than a short test."""
    for plugin in session.config.pluginmanager.get_plugins():
        if type(plugin).__name__ == "WorkerInteractor" and not session.config.getoption("durations"):
            plugin.sendevent = partial(_send, plugin.sendevent)


def _send(send: Callable[..., None], name: str, **data: Any) -> None:
    if not _is_silent(name, data):
        send(name, **data)


def _is_silent(name: str, data: Any) -> bool:
    """Whether an event of a worker changes no line and no number of the output."""
    if name == "testreport":
        return bool(data["data"]["when"] != "call" and data["data"]["outcome"] == "passed")
    return name in ("logstart", "logfinish")


def pytest_collection_finish() -> None:
    """Exclude modules and tests from garbage collections, which torch.compile triggers at each reset.

    Hydra also reads its store of schemas without copying it, which would take a seventh of each composition.
    """
    hydra_store = sys.modules.get("hydra.core.config_store")
    if hydra_store is not None:
        hydra_store.ConfigStore.__deepcopy__ = lambda self, memo: self
    gc.collect()
    gc.freeze()


def _is_quick(item: pytest.Item) -> bool:
    if item.get_closest_marker("slow") or item.get_closest_marker("distributed"):
        return False
    if item.path.name != "test_laws.py":
        return True
    case = getattr(item, "callspec", None) and item.callspec.params.get("case")
    return item.name.startswith("test_law[") and not (case.settings or case.model)


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Seed the random generators before each test, so that its numbers do not depend on other tests."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skip tests of torch.compile if there is no C++ compiler."""
    from modular_gpt.training.compile import has_compiler

    if not has_compiler(torch.device("cpu")):
        pytest.skip("there is no C++ compiler")


@pytest.fixture
def pictures() -> None:
    """Requested by tests of loss.png; all others skip the plot, which takes longer than a small training."""


@pytest.fixture(autouse=True)
def fast_trainings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the plots of small trainings, and cache the FLOPs of a model, which take half of their time."""
    recorder = sys.modules.get("modular_gpt.training.recorder")
    if recorder is None:  # not imported yet
        return
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(recorder, "plot_losses", lambda *arguments: None)
    monkeypatch.setattr("modular_gpt.training.run_info.flops_per_token", counted_once)


operations: dict[str, float] = {}


def counted_once(config: Any, *others: object) -> float:
    key = repr((config, *others))
    if key not in operations:
        operations[key] = sys.modules["modular_gpt.training.estimate"].flops_per_token(config, *others)
    return operations[key]


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shakespeare_path() -> Path:
    """Path of Tiny Shakespeare, about 1.1 MB of text."""
    path = SHARED / "data" / "tinyshakespeare.txt"
    if not path.is_file():
        pytest.skip(f"tiny Shakespeare is not at {path}")
    return path


@pytest.fixture
def tiktoken_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with GPT-2's tiktoken files; TIKTOKEN_CACHE_DIR is set to it."""
    folders = [Path(os.environ.get("TIKTOKEN_CACHE_DIR", SHARED / "tiktoken")), SHARED / "tiktoken"]
    for folder in folders:
        if all((folder / name).is_file() for name in GPT2_CACHE_FILES):
            monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
            return folder
    pytest.skip(f"GPT-2's tiktoken files are neither in TIKTOKEN_CACHE_DIR nor in {SHARED / 'tiktoken'}")
