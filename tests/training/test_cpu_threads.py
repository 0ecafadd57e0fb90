"""The wait policy of OpenMP threads: set by every command before torch is loaded, unless set by the user."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modular_gpt.runtime.cpu_threads import CHOSEN_BY_USER, POLICY, avoid_spinning


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a policy, as in a process that has not loaded torch."""
    for name in CHOSEN_BY_USER:
        monkeypatch.setenv(name, "")  # so that changes of the test are undone
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return monkeypatch


def policy() -> dict[str, str]:
    return {name: os.environ[name] for name in CHOSEN_BY_USER if name in os.environ}


def test_threads_sleep(clean: pytest.MonkeyPatch) -> None:
    assert avoid_spinning() and policy() == POLICY


@pytest.mark.parametrize("name", CHOSEN_BY_USER)
def test_a_policy_of_the_user_is_kept(clean: pytest.MonkeyPatch, name: str) -> None:
    clean.setenv(name, "7")
    assert not avoid_spinning() and policy() == {name: "7"}


def test_after_torch_is_loaded_nothing_is_set(clean: pytest.MonkeyPatch) -> None:
    clean.setitem(sys.modules, "torch", sys)
    assert not avoid_spinning() and policy() == {}


def test_every_command_sets_it_before_torch(clean: pytest.MonkeyPatch, root: Path) -> None:
    """In a fresh interpreter that imports the modules of all commands before it runs the first one."""
    code = (
        "import importlib, os, sys\n"
        "import tomllib\n"
        "scripts = tomllib.load(open('pyproject.toml', 'rb'))['project']['scripts']\n"
        "mains = [importlib.import_module(s.partition(':')[0]).main for s in scripts.values()]\n"
        "assert 'torch' not in sys.modules, 'torch is loaded before the policy is set'\n"
        "for main in mains:\n"
        "    os.environ.pop('GOMP_SPINCOUNT', None); os.environ.pop('OMP_WAIT_POLICY', None)\n"
        "    main(['--version'])\n"
        "    print('set to', os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    lines = [line for line in answer.stdout.splitlines() if line.startswith("set to")]
    assert len(lines) >= 4 and set(lines) == {f"set to {POLICY['GOMP_SPINCOUNT']}"}
