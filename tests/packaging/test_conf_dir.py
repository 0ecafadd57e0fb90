"""The folder conf/ is beside the package in a checkout and inside it in a wheel."""

from pathlib import Path

import pytest

from modular_gpt.cli.composition import conf_dir as _conf_dir
from modular_gpt.core.errors import ConfigError


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, patched to be the location of the package."""
    monkeypatch.setattr(_conf_dir, "__file__", str(tmp_path / "modular_gpt" / "cli" / "composition" / "conf_dir.py"))
    return tmp_path


def make(conf: Path, name: str = "train.yaml") -> Path:
    conf.mkdir(parents=True)
    (conf / name).touch()
    return conf


def test_a_checkout_has_it_beside_the_package(place: Path) -> None:
    conf = make(place / "conf")
    assert _conf_dir.conf_dir() == conf


def test_a_wheel_has_it_inside_the_package_which_takes_precedence(place: Path) -> None:
    make(place / "conf")
    inside = make(place / "modular_gpt" / "conf")
    assert _conf_dir.conf_dir() == inside


def test_the_conf_of_another_project_is_not_used(place: Path) -> None:
    make(place / "conf", "other.yaml")
    with pytest.raises(ConfigError, match=r"no conf/train\.yaml in .*modular_gpt"):
        _conf_dir.conf_dir()


def test_this_checkout_has_it(root: Path) -> None:
    assert _conf_dir.conf_dir() == root / "conf"
