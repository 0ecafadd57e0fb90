"""The distribution as installed by pip: built from the source archive, unpacked, and used from another directory."""

import contextlib
import os
import subprocess
import tarfile
import zipfile
from email import message_from_string
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
from hatchling import build

from modular_gpt import __version__
from tests.fresh import python


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    with contextlib.chdir(root):
        archive = folder / build.build_sdist(str(folder))
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def site(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, like site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    with contextlib.chdir(source):
        wheel = folder / build.build_wheel(str(folder))
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code with the unpacked wheel first on the path, outside of the checkout."""
    return python("-c", code, *arguments, env={**os.environ, "PYTHONPATH": str(site)}, cwd=site.parent)


def files(folder: Path, pattern: str) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob(pattern) if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


def test_the_wheel_has_only_the_package_and_the_configs(root: Path, site: Path) -> None:
    packages = {"modular_gpt", "hydra_plugins", f"modular_gpt-{__version__}.dist-info"}
    assert {path.name for path in site.iterdir()} == packages
    assert files(site / "hydra_plugins", "*.*") == {"modular_gpt_rounds.py"}  # a namespace shared with other plugins
    assert files(site / "modular_gpt", "*.py") == files(root / "modular_gpt", "*.py")
    assert files(site / "modular_gpt" / "conf", "*.yaml") == files(root / "conf", "*.yaml") != set()
    assert (site / "modular_gpt" / "py.typed").is_file()


def test_the_source_archive_contains_all_files_for_its_checks(root: Path, source: Path) -> None:
    for name in ("Makefile", "constraints.txt", "LICENSE", "CHANGELOG.md", "README.md", ".ci/run"):
        assert (source / name).read_bytes() == (root / name).read_bytes()
    for folder in ("conf", "docs", "tests"):
        assert files(source / folder, "*.*") == files(root / folder, "*.*") != set()
    assert not (source / ".venv").exists()
    assert not (source / "runs").exists()


def test_metadata(root: Path, site: Path) -> None:
    folder = site / f"modular_gpt-{__version__}.dist-info"
    metadata = message_from_string((folder / "METADATA").read_text())
    assert metadata["Name"] == "modular-gpt"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (folder / "licenses" / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()


def test_configs_are_found_from_another_directory(site: Path) -> None:
    result = run(site, "from modular_gpt.cli.composition.conf_dir import conf_dir; print(conf_dir())")
    assert result.stdout.strip() == str(site / "modular_gpt" / "conf"), result.stderr


@pytest.mark.parametrize("command", ["mgpt-train", "mgpt-generate"])
def test_commands_run_from_another_directory(site: Path, command: str) -> None:
    points = PathDistribution(site / f"modular_gpt-{__version__}.dist-info").entry_points
    point = points.select(group="console_scripts")[command]
    code = f"import sys; sys.argv[0] = {command!r}; from {point.module} import {point.attr}; {point.attr}()"
    result = run(site, code, "--help")
    assert result.returncode == 0, result.stderr
    assert command in result.stdout
