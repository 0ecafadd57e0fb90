"""constraints.txt pins every package that `make test` installs, to a version that pyproject.toml allows."""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Version]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs)
    return {canonicalize_name(name): Version(version) for name, version in pairs}


@pytest.fixture(scope="module")
def asked(root: Path) -> list[Requirement]:
    """The direct requirements of the package and of its development, with its extras resolved."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found, pending = [], [*project["dependencies"], *extras["dev"]]
    while pending:
        requirement = Requirement(pending.pop())
        if requirement.name == project["name"]:
            pending += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


def test_direct_requirements_are_pinned_within_their_range(pins: dict[str, Version], asked: list[Requirement]) -> None:
    for requirement in asked:
        pin = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier, f"{requirement} does not allow the pinned {pin}"


def pulled_in(requirement: Requirement) -> list[Requirement]:
    """The dependencies of a requirement on this machine, with its extras."""
    try:
        lines = distribution(requirement.name).requires or []
    except PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed")
    extras = requirement.extras or {""}
    needs = [Requirement(line) for line in lines]
    return [
        need for need in needs if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def test_their_dependencies_are_pinned(pins: dict[str, Version], asked: list[Requirement]) -> None:
    """Except those of torch, which differ between its CPU and its GPU builds."""
    seen = {"torch"}
    pending = asked.copy()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name not in seen:
            seen.add(name)
            assert name in pins, f"{name} is installed unpinned"
            pending += pulled_in(requirement)


def test_torch_is_pinned_without_a_build(pins: dict[str, Version]) -> None:
    """A local version such as +cpu exists for some platforms only."""
    assert pins["torch"].local is None
