"""Help, tab completion and mistakes in settings do not import PyTorch; their table of settings equals the code."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from modular_gpt.cli import bench, compare, convert, evaluate, generate, inspect, train
from modular_gpt.cli.composition import stored
from modular_gpt.cli.composition.schema import Command, folders
from modular_gpt.cli.composition.train_config import composed_run
from modular_gpt.cli.early import check_settings
from modular_gpt.cli.help import help_text
from modular_gpt.core import registry
from modular_gpt.core.errors import ConfigError, UserError
from tests.cli.test_mistakes import MISTAKES
from tests.docs.pages import ROOT
from tests.packaging.light import answers

TABLE = json.loads(stored.TABLE.read_text(encoding="utf-8"))
MODULES = {
    "train": train,
    "generate": generate,
    "eval": evaluate,
    "convert": convert,
    "compare": compare,
    "bench": bench,
    "inspect": inspect,
}
SETTINGS = {"train": [["attention.window"], ["gqa"], ["lr"]], "generate": [["top_k"]]}  # topics of --help
WITHOUT = ["torch", "numpy", "transformers", "modular_gpt.nn", "modular_gpt.training", "modular_gpt.checkpoint"]


@pytest.fixture(autouse=True)
def own_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide components that other tests have registered in this process."""
    own = {slot: {name: entry for name, entry in found.items() if entry.component.__module__.startswith("modular_gpt.")}
           for slot, found in registry._entries.items()}  # fmt: skip
    monkeypatch.setattr(registry, "_entries", {slot: found for slot, found in own.items() if found})


@pytest.fixture
def scripts() -> ModuleType:
    """The script that writes the table."""
    sys.path.insert(0, str(ROOT / "docs" / "scripts"))
    import stored_commands

    return stored_commands


@pytest.fixture(params=list(MODULES))
def pair(request: pytest.FixtureRequest, scripts: ModuleType) -> tuple[Command, Command]:
    """A command from the table, and the same one from the code."""
    code = next(command for command in scripts.COMMANDS if command.name == request.param)
    return stored.read_command(request.param, TABLE), code


def test_commands_run_without_torch() -> None:
    """Each in a separate process, forked from a small one before torch is imported."""
    lines = [
        *((name, "--help") for name in MODULES),
        ("train", "--help", "attention"),
        ("train", "attention=gqq"),
        ("train", "trainer.max_steps=many"),
        ("train", "--multirun", "attention=mha,gqq"),
        ("train", "--shell-completion", "query=bash"),
        ("generate", "temprature=3"),
        ("generate", "max_new_tokens=many"),
        ("eval", "strid=3"),
        ("convert", "pth=x"),
        ("inspect", "promt=x"),
        *((name, "checkpoint=no/such/run") for name in ("generate", "eval", "convert", "inspect")),
        ("generate", "checkpoint=no-such-model"),
        ("train", "resume=no/such/run"),
        ("train", "init_from=no/such/run"),
        ("train", "--version"),
    ]
    for line, answer in zip(lines, answers(lines), strict=True):
        asked = any(argument.startswith("--") for argument in line[1:]) and "--multirun" not in line
        assert answer["code"] == (0 if asked else 2), (line, answer)
        assert not set(WITHOUT) & set(answer["modules"]), line


def test_help_is_equal(pair: tuple[Command, Command]) -> None:
    code = pair[1]
    module, where = MODULES[code.name], folders()
    for topic in [[], *([name] for name in code.choices()), *SETTINGS.get(code.name, [])]:
        texts = [help_text(command, module.ABOUT, module.EXAMPLES, topic, where) for command in pair]
        assert texts[0] == texts[1], topic


def test_declared_types_and_defaults_are_equal(pair: tuple[Command, Command]) -> None:
    table, code = pair
    assert list(table.settings()) == list(code.settings())
    for setting in code.settings():
        shown = [
            [str(hint) for hint in command.hints(setting) if not dataclasses.is_dataclass(hint)] for command in pair
        ]
        assert shown[0] == shown[1]
    for group in code.groups():
        given = [
            {name: dataclasses.asdict(s.defaults) for name, s in command.schemas(group).items()} for command in pair
        ]
        assert given[0] == given[1]


def test_mistakes_get_the_same_sentence() -> None:
    """Messages from the table equal those of the code."""
    command, where = stored.read_command("train", TABLE), folders()
    early: dict[str, str] = {}
    for line, _ in MISTAKES[::4]:
        try:
            check_settings(command, line.split(), where)
        except UserError as error:
            early[line] = str(error)
    early = {line: sentence for line, sentence in early.items() if "--" not in line}
    assert len(early) > 8
    for line, sentence in early.items():
        with pytest.raises(UserError) as late:
            composed_run(line.split(), where)
        assert str(late.value) == sentence


def test_the_table_is_not_used_if_it_may_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert stored.stored("train") is None  # this process has imported components
    monkeypatch.setattr(stored, "slots", list)
    for name in (None, "some_module"):
        if name is not None:
            monkeypatch.setenv(stored.PLUGINS, name)
        assert (stored.stored("train") is None) == (name is not None)
    assert stored.stored("strange") is None


def test_fingerprints_depend_on_settings_only(tmp_path: Path) -> None:
    source = '''"""A module."""
import os

@dataclass
class Config:
    """width: of the layer"""

    width: int = 3

    def check(self) -> None:
        return 1
'''
    path = tmp_path / "component.py"

    def of(text: str) -> str:
        path.write_text(text)
        return stored.fingerprint(path)

    first = of(source)
    for same in (("return 1", "return 2"), ("import os", "import sys"), ("    def check", "    # why\n    def check")):
        assert of(source.replace(*same)) == first
    for other in (("= 3", "= 4"), ("of the layer", "of a layer"), ("int", "float")):
        assert of(source.replace(*other)) != first


def test_a_changed_source_or_a_new_file_disables_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in TABLE["sources"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(stored.PACKAGE / name)
    monkeypatch.setattr(stored, "PACKAGE", tmp_path)
    fresh = stored._fresh_table.__wrapped__
    assert fresh() is not None
    new = tmp_path / "nn" / "attention" / "toy.py"
    new.write_text("class Mine: ...\n")
    assert fresh() is None
    new.unlink()
    assert fresh() is not None
    changed = tmp_path / "nn" / "attention" / "mla.py"
    text = changed.read_text()
    changed.unlink()
    changed.write_text(text.replace("kv_lora_rank: int", "kv_lora: int"))
    assert fresh() is None


def test_processes_of_one_training_are_not_checked_early(monkeypatch: pytest.MonkeyPatch) -> None:
    command = stored.read_command("train", TABLE)
    with pytest.raises(ConfigError):
        check_settings(command, ["attention=gqq"], folders())
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    check_settings(command, ["attention=gqq"], folders())
