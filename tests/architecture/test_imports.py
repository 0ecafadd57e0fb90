"""Imports go strictly down the floors; rooms of one floor do not import each other."""

import ast
import sys

import pytest

from tests.architecture.source import PACKAGE, imports, modules

FLOORS = (
    {"core", "_version"},
    {"nn", "generation", "data", "runtime"},
    {"model"},
    {"chat", "evaluation", "inspection", "mapping", "weights"},
    {"pretrained", "deploy", "distributed"},
    {"hf", "optim"},
    {"checkpoint"},
    {"training"},
    {"benchmark", "comparison", "compat"},
    {"cli"},
    {"__init__"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Methods implemented on a higher floor, which they import when they are called.
DOORS_UP = {("model", "checkpoint")}
HYDRA_ROOM, HYDRA = "cli", {"hydra", "omegaconf"}
CORE_LIBRARIES = {"torch"}


def room(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def wrong_imports(path: str, tree: ast.Module) -> list[str]:
    """One sentence for each import that breaks a rule."""
    here, wrong = room(path), []
    for line, name in imports(path, tree):
        library, _, rest = name.partition(".")
        where = f"{path}:{line} imports {name}"
        if library == PACKAGE:
            # a plain `import modular_gpt`, or a name that is no room, comes from the package's __init__
            there = rest.split(".")[0] if rest.split(".")[0] in FLOOR else "__init__"
            if there != here and FLOOR[there] >= FLOOR[here] and (here, there) not in DOORS_UP:
                wrong.append(f"{where}: {there} is on floor {FLOOR[there]}, {here} on {FLOOR[here]}")
        elif library in HYDRA and here != HYDRA_ROOM:
            wrong.append(f"{where}: only {HYDRA_ROOM} may")
        elif here == "core" and library not in CORE_LIBRARIES | sys.stdlib_module_names:
            wrong.append(f"{where}: core has torch only")
    return wrong


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in modules()} <= set(FLOOR), "give the new room a floor in FLOORS"


def test_imports_go_down() -> None:
    wrong = [
        sentence for path, tree in modules().items() if room(path) in FLOOR for sentence in wrong_imports(path, tree)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("core/cache.py", "from modular_gpt.nn import ops"),
        ("core/cache.py", "import numpy"),
        ("nn/sdpa.py", "import modular_gpt"),
        ("nn/sdpa.py", "from modular_gpt import GPTModel"),
        ("nn/attention/gqa.py", "from modular_gpt import generation"),
        ("nn/attention/gqa.py", "from ...generation.engine import generate"),
        ("generation/engine.py", "import modular_gpt.model"),
        ("model/config.py", "def f():\n    from ..training import trainer"),
        ("training/trainer.py", "import hydra.utils"),
        ("data/corpus.py", "from omegaconf import OmegaConf"),
    ],
)
def test_an_import_upwards_or_sideways_is_reported(path: str, code: str) -> None:
    assert wrong_imports(path, ast.parse(code))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("core/cache.py", "import math\nimport torch.nn.functional as F\nfrom .errors import ConfigError"),
        ("nn/attention/gqa.py", "from .. import ops\nfrom modular_gpt.core.contracts import Attention"),
        ("cli/train.py", "import hydra\nfrom modular_gpt import model\nfrom ..training import trainer"),
        ("__init__.py", "from .model import GPTModel\nfrom modular_gpt.cli import _compose"),
    ],
)
def test_an_import_downwards_is_accepted(path: str, code: str) -> None:
    assert not wrong_imports(path, ast.parse(code))
