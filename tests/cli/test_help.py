"""--help lists every group, option and setting, with a line about each."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from modular_gpt import __version__
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.schema import options
from modular_gpt.cli.composition.train_config import TRAIN
from modular_gpt.cli.generate_task import GENERATE
from tests.cli.conftest import Run
from tests.fresh import python


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_option_with_a_line_about_it(run: Run, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    answer = run("train", flag)
    assert answer.code == 0 and answer.err == ""
    section = ""
    listed: dict[str, dict[str, str]] = {}
    for line in answer.out.splitlines():
        if " - " in line and not line.startswith(" "):
            section = line.partition(" - ")[0]
        elif line.startswith(("    ", "  * ")) and line[4:5].strip() and section:
            name, _, about = line[4:].partition(" ")
            listed.setdefault(section, {})[name] = about.strip()
    for group in TRAIN.choices():
        for name in options(TRAIN, group, [conf_dir()]):
            assert len(listed[group][name]) > 10, f"{group}={name}"


def test_help_marks_the_defaults(run: Run) -> None:
    out = run("train", "--help").out
    for group, choice in TRAIN.choices().items():
        if choice.default != "null":
            assert f"* {choice.default} " in out, group


@pytest.mark.parametrize("command", ["train", "generate"])
def test_help_lists_the_settings_outside_groups(run: Run, command: str) -> None:
    out = run(command, "--help").out
    dotted = [key for key in {"train": TRAIN, "generate": GENERATE}[command].settings() if key.count(".") == 0]
    assert dotted
    for key in dotted:
        assert f"  {key}=" in out


@pytest.mark.parametrize("group", list(TRAIN.choices()))
def test_help_on_a_group_lists_its_settings(run: Run, group: str) -> None:
    answer = run("train", "--help", group)
    assert answer.code == 0
    known = [key for key in TRAIN.settings() if key.startswith(f"{group}.") and key != f"{group}.name"]
    for key in known:
        assert f"  {key}=" in answer.out


def test_help_on_a_group_names_the_base_of_its_options(run: Run) -> None:
    assert "swa starts from window=64" in run("train", "--help", "attention").out
    assert "d_model=1600" in run("train", "--help", "model_size").out
    assert "override /tokenizer: char" in run("train", "--help", "experiment").out


@pytest.mark.parametrize("topic", ["layers", "layers=family", "layers=uniform"])
def test_an_option_that_sets_nothing_has_no_list_of_settings(run: Run, topic: str) -> None:
    lines = run("train", "--help", topic).out.splitlines()
    assert not [line for line in lines if line.rstrip().endswith("sets")]


def test_the_examples_of_the_help_are_valid(run: Run) -> None:
    lines = run("train", "--help").out.splitlines()
    examples = [line.split("  ")[1] for line in lines if line.startswith("  mgpt-train")]
    tried = 0
    for example in examples:
        arguments = [argument.strip("'") for argument in example.split()[1:]]
        if not arguments or arguments[0].startswith("-") or arguments[0].startswith(("resume=", "init_from=")):
            continue
        tried += 1
        assert run("train", *arguments, "--cfg", "job").code == 0, example
    assert tried >= 4


def test_the_version(run: Run) -> None:
    for command in ("train", "generate"):
        answer = run(command, "--version")
        assert answer.code == 0 and answer.out.startswith(f"modular-gpt {__version__} with PyTorch {torch.__version__}")
        assert platform.python_version() in answer.out and answer.out.count("\n") == 1


def test_cfg_shows_every_setting_and_runs_nothing(run: Run, folder: Path) -> None:
    answer = run("train", "--cfg", "job", "attention=gqa", "attention.n_kv_heads=4")
    assert answer.code == 0
    assert "n_kv_heads: 4" in answer.out and "learning_rate:" in answer.out and "hydra" not in answer.out
    assert list(folder.iterdir()) == []
    assert run("train", "--cfg", "job", "model_size.n_heads=3").code == 2


def process(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    return python("-c", code, env={**os.environ, "PYTHONPATH": str(root)})


def test_flags_of_hydra_work(root: Path) -> None:
    lines = [["--hydra-help"], ["--cfg", "hydra"], ["--info", "defaults"], ["--shell-completion", "install=bash"]]
    code = f"from modular_gpt.cli.train import main\nfor line in {lines}: print('exit', main(line))"
    result = process(root, code)  # Hydra changes the logging of the process
    assert result.stdout.count("exit 0") == 4, result.stderr
    for excerpt in ("hydra/launcher: basic", "job_logging", "attention/mha", "COMPREPLY"):
        assert excerpt in result.stdout


@pytest.mark.parametrize("command", ["train", "generate"])
def test_help_is_fast_and_imports_no_heavy_library(root: Path, command: str) -> None:
    code = (
        f"import sys; from modular_gpt.cli.{command} import main; main(['--help'])\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    result = process(root, code)
    assert result.returncode == 0
    assert not set(result.stderr.split()) & {"transformers", "tiktoken", "tokenizers", "datasets", "matplotlib"}
