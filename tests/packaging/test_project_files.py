"""CITATION.cff, workflows and issue templates agree with pyproject.toml, the Makefile and the version."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from modular_gpt import __version__

PYTHON = "Programming Language :: Python :: "


def read(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict), path
    return content


def commands(path: Path) -> str:
    """The shell commands of the jobs of a workflow."""
    steps = [step for job in read(path)["jobs"].values() for step in job.get("steps", [])]
    return "\n".join(step.get("run", "") for step in steps)


@pytest.fixture(scope="module")
def workflows(root: Path) -> Path:
    return root / ".github" / "workflows"


def test_the_citation_has_the_version_and_license_of_the_package(root: Path) -> None:
    citation = read(root / "CITATION.cff")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert str(citation["version"]) == __version__
    assert citation["license"] == project["license"]


def test_the_quick_check_runs_on_every_supported_python(root: Path, workflows: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    supported = [line.removeprefix(PYTHON) for line in project["classifiers"] if re.match(rf"{PYTHON}3\.\d+$", line)]
    jobs = read(workflows / "check.yml")["jobs"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == supported
    assert "make test" in commands(workflows / "check.yml")


@pytest.mark.parametrize("name", ["check.yml", "release.yml"])
def test_workflows_call_targets_of_the_makefile(root: Path, workflows: Path, name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"\bmake ([a-z]+)", commands(workflows / name)))
    assert called and called <= targets


def test_a_release_is_published_after_check_and_build(workflows: Path) -> None:
    jobs = read(workflows / "release.yml")["jobs"]
    assert (jobs["build"]["needs"], jobs["publish"]["needs"]) == ("check", "build")
    assert jobs["publish"]["permissions"] == {"id-token": "write"}  # only this job may publish
    assert "GITHUB_REF_NAME" in commands(workflows / "release.yml")


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_templates_ask_for_the_version_and_the_run(root: Path, name: str) -> None:
    body = (root / ".github" / "ISSUE_TEMPLATE" / name).read_text()
    assert "mgpt-train --version" in body and "run.json" in body
    identifiers = [field["id"] for field in yaml.safe_load(body)["body"] if field["type"] != "markdown"]
    assert len(set(identifiers)) == len(identifiers)
