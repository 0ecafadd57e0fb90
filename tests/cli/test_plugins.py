"""One .py and one .yaml file of the user add an option, in a fresh process and without other edits."""

import os
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from modular_gpt.cli.composition import schema as _settings
from tests.cli.conftest import TINY
from tests.fresh import python

PART = '''
from dataclasses import dataclass
import torch
from modular_gpt.core.contracts import FeedForward
from modular_gpt.core.registry import ComponentConfig


class Toy(FeedForward, name="toy"):
    """One matrix and a sine."""

    @dataclass
    class Config(ComponentConfig):
        """factor: on the angle"""

        factor: float = 1.0

    def __init__(self, config, dims):
        super().__init__(config, dims)
        self.factor = config.factor
        self.linear = torch.nn.Linear(dims.d_model, dims.d_model)

    def forward(self, x):
        return torch.sin(self.factor * self.linear(x)), {}
'''


@pytest.fixture
def plugin(folder: Path, corpus: str) -> Path:
    """A folder with a component of the user."""
    (folder / "my_parts.py").write_text(PART)
    return folder


def train(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(root), "MODULAR_GPT_PLUGINS": "my_parts", "OMP_NUM_THREADS": "1"}
    return python("-m", "modular_gpt.cli.train", *arguments, cwd=folder, env=env)


def test_a_component_with_a_yaml(root: Path, plugin: Path, corpus: str) -> None:
    (plugin / "conf" / "ffn").mkdir(parents=True)
    (plugin / "conf" / "ffn" / "toy_fast.yaml").write_text(
        "# A toy that turns faster\ndefaults: [toy_schema]\nfactor: 3.0\n"
    )
    arguments = ["--config-dir", "conf"]
    listed = train(root, plugin, *arguments, "--help").stdout
    assert "toy                  One matrix and a sine." in listed
    assert "toy_fast             A toy that turns faster" in listed
    ran = train(root, plugin, *arguments, "ffn=toy_fast", *corpus.split(), *TINY)
    assert ran.returncode == 0, ran.stderr
    saved = (plugin / "runs" / "latest" / "config.yaml").read_text()
    assert "name: toy" in saved and "factor: 3.0" in saved


def test_a_component_without_a_yaml(root: Path, plugin: Path) -> None:
    wrong = train(root, plugin, "ffn=toy", "ffn.factr=2")
    assert wrong.returncode == 2 and "did you mean 'factor'?" in wrong.stderr


def test_a_missing_plugin_is_refused(root: Path, folder: Path) -> None:
    answer = train(root, folder, "--help")
    assert answer.returncode == 2 and "'my_parts', which cannot be imported" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_yaml_files_of_another_package(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugin / "their_package" / "conf" / "model_size").mkdir(parents=True)
    (plugin / "their_package" / "__init__.py").touch()
    file = plugin / "their_package" / "conf" / "model_size" / "theirs.yaml"
    file.write_text("# Theirs\ndefaults: [model_size_schema]\nd_model: 48\n")
    points = [EntryPoint("theirs", "their_package.conf", _settings.CONFIGS)]
    monkeypatch.setattr(_settings, "entry_points", lambda group: points if group == _settings.CONFIGS else [])
    monkeypatch.syspath_prepend(str(plugin))
    _settings._installed.cache_clear()
    try:
        from modular_gpt import compose
        from modular_gpt.cli.composition.train_config import TRAIN

        assert _settings.options(TRAIN, "model_size", _settings.folders())["theirs"] == "Theirs"
        assert compose("model_size=theirs").model.d_model == 48
    finally:
        monkeypatch.undo()
        _settings._installed.cache_clear()
