"""One python file is all it takes: a new part meets every law with no other edit."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.components.laws import LAWS, SLOW_LAWS
from tests.fresh import python

TOY = Path(__file__).with_name("toy.py")


def pytest_on_toy(checkout: Path, **environment: str) -> str:
    """Run the laws of the checkout on cases whose name says toy, in a process of its own."""
    done = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "toy"),
        *("tests/components/test_laws.py", "tests/components/test_coverage.py"),
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
    )
    return done.stdout


@pytest.mark.slow
def test_dropped_into_the_package(tmp_path: Path, root: Path) -> None:
    """It is also asked for settings of its own, since it stands inside the package now."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "modular_gpt", tmp_path / "modular_gpt", ignore=ignore)
    (tmp_path / "tests").mkdir()
    shutil.copytree(root / "tests" / "components", tmp_path / "tests" / "components", ignore=ignore)
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    shutil.copy(TOY, tmp_path / "modular_gpt" / "nn" / "attention" / "toy.py")
    said = pytest_on_toy(tmp_path)
    failed, passed = counted("failed", said), counted("passed", said)
    assert failed == 2, said  # cases.EXTRAS has no entry for it, and so its width never changes
    assert "test_every_name_has_settings_of_its_own[attention-toy]" in said
    assert "test_every_setting_changes_in_some_case[attention-toy]" in said
    assert passed >= 2 * len(LAWS) + len(SLOW_LAWS), said  # its defaults, and its switch turned


@pytest.mark.slow
def test_named_as_a_plugin(tmp_path: Path, root: Path) -> None:
    shutil.copy(TOY, tmp_path / "my_attention.py")
    path = f"{tmp_path}{os.pathsep}{root}"
    said = pytest_on_toy(root, PYTHONPATH=path, MODULAR_GPT_PLUGINS="my_attention")
    assert counted("failed", said) == 0, said
    assert counted("passed", said) >= 2 * len(LAWS) + len(SLOW_LAWS), said


def counted(what: str, said: str) -> int:
    match = re.search(rf"(\d+) {what}", said)
    return int(match[1]) if match else 0
