"""A new component in one python file is tested by every law without other edits."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.components.laws import LAWS, SLOW_LAWS
from tests.fresh import python

TOY = Path(__file__).with_name("toy.py")


def pytest_on_toy(checkout: Path, **environment: str) -> str:
    """Run the laws of the checkout on cases with toy in their name, in a separate process."""
    done = python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "toy"),
        *("tests/components/test_laws.py", "tests/components/test_coverage.py"),
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
    )
    return done.stdout


@pytest.mark.slow
def test_dropped_into_the_package(tmp_path: Path, root: Path) -> None:
    """Inside the package it must also have extra settings, which it lacks."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "modular_gpt", tmp_path / "modular_gpt", ignore=ignore)
    (tmp_path / "tests").mkdir()
    shutil.copytree(root / "tests" / "components", tmp_path / "tests" / "components", ignore=ignore)
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    shutil.copy(TOY, tmp_path / "modular_gpt" / "nn" / "attention" / "toy.py")
    output = pytest_on_toy(tmp_path)
    failed, passed = counted("failed", output), counted("passed", output)
    assert failed == 2, output  # cases.EXTRAS has no entry for it, so no case changes its width
    assert "test_every_name_has_extra_settings[attention-toy]" in output
    assert "test_every_setting_changes_in_some_case[attention-toy]" in output
    assert passed >= 2 * len(LAWS) + len(SLOW_LAWS), output  # its defaults, and its inverted switch


@pytest.mark.slow
def test_named_as_a_plugin(tmp_path: Path, root: Path) -> None:
    shutil.copy(TOY, tmp_path / "my_attention.py")
    path = f"{tmp_path}{os.pathsep}{root}"
    output = pytest_on_toy(root, PYTHONPATH=path, MODULAR_GPT_PLUGINS="my_attention")
    assert counted("failed", output) == 0, output
    assert counted("passed", output) >= 2 * len(LAWS) + len(SLOW_LAWS), output


def counted(outcome: str, output: str) -> int:
    match = re.search(rf"(\d+) {outcome}", output)
    return int(match[1]) if match else 0
