"""Random and hostile input at every interface works or raises a UserError, without a hang or excessive memory.

The cases are seeded and run in this process, so that they are the same in all runs.
"""

import json
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import GPTConfig, GPTModel, compose
from modular_gpt.checkpoint import load_checkpoint, save_checkpoint
from modular_gpt.checkpoint.manifest import MANIFEST, write_manifest
from modular_gpt.checkpoint.resolve import load_model
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.schema import options
from modular_gpt.cli.composition.train_config import TRAIN
from modular_gpt.cli.generate_task import GENERATE, read_task
from modular_gpt.core.errors import UserError
from modular_gpt.core.registry import entries
from modular_gpt.data.tokenizers import build_tokenizer
from modular_gpt.generation import generate
from modular_gpt.model.config import SLOTS
from modular_gpt.training import load_config

MAX_MEMORY = 4 * 2**30  # bytes
NUMBERS: tuple[Any, ...] = (
    *(
        0,
        1,
        2,
        3,
        7,
        16,
        -1,
        2**31,
        2**63,
        10**400,
        0.0,
        0.5,
        1.0,
        -0.5,
        1e-39,
        1e39,
        1e308,
        float("nan"),
        float("inf"),
    ),
)
TEXTS = (
    "",
    "a",
    "null",
    "true",
    "\x00",
    "\u2028",
    "é" * 9,
    "../..",
    "${oc.env:HOME}",
    "~",
    "x" * 5000,
    "[",
    "{a: b}",
    "1e400",
)
HOSTILE: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"name": "mha"},
    {"a": {"b": []}},
)
COMMAND_LINE_VALUES = (
    *(
        "0",
        "1",
        "2",
        "-1",
        "1e400",
        "nan",
        "inf",
        "9" * 400,
        "0.5",
        "null",
        "true",
        "",
        "a",
        "'",
        '"',
        "[",
        "[]",
        "[a,b]",
        "{}",
    ),
    *(
        "{a:1}",
        "1,2",
        "range(1,3)",
        "${oc.env:HOME}",
        "${x}",
        "~",
        "\\",
        "=",
        "#",
        "é",
        "\u2028",
        "x" * 3000,
        "???",
        "\n",
    ),
)


COUNTS = {
    "test_model_configs_work_or_are_refused": 2000,
    "test_overrides_of_trainings_work_or_are_refused": 150,
    "test_settings_of_generation_work_or_are_refused": 300,
    "test_damaged_json_files_of_checkpoints_are_read_or_refused": 200,
    "test_damaged_json_files_of_model_folders_are_read_or_refused": 200,
}


@pytest.fixture
def generators(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """Yield a seeded random generator for each case of a test."""
    name = request.node.name
    seed = 100_000 * (1 + list(COUNTS).index(name))
    return (random.Random(seed + number) for number in range(COUNTS[name]))


def result_or_user_error(action: Callable[[], Any], case: object) -> Any:
    """Return the result of ``action``, or the UserError that it raises, whose message must be one short line."""
    try:
        return action()
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 5000, case
        return error
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error} for {str(case)[:2000]}")


@pytest.fixture(autouse=True)
def memory_limit() -> Iterator[None]:
    """Check that a test allocates less than 4 GiB: sizes beyond any memory are refused before allocation."""
    before = peak_memory()
    yield
    assert peak_memory() - before < MAX_MEMORY


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tiny() -> dict[str, Any]:
    return {"vocab_size": 32, "d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 8}


def test_model_configs_work_or_are_refused(generators: Iterator[random.Random]) -> None:
    fields = [name for name in GPTConfig.__dataclass_fields__ if name not in SLOTS]
    for rng in generators:
        given: dict[str, Any] = tiny()
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.5:
                slot = rng.choice(SLOTS)
                name = rng.choice(sorted(entries(slot)))
                settings = list(entries(slot)[name].component.Config.__dataclass_fields__)
                given[slot] = {"name": name, rng.choice(settings): rng.choice(HOSTILE)}
            else:
                given[rng.choice(fields)] = rng.choice(HOSTILE)
        config = result_or_user_error(lambda given=given: GPTConfig.from_dict(given), given)
        if isinstance(config, GPTConfig) and config.d_model * config.n_layers * config.vocab_size < 10**5:
            result_or_user_error(lambda config=config: forward(config), given)


def forward(config: GPTConfig) -> None:
    """Run a small model on four tokens."""
    with torch.device("meta"):
        small = GPTModel(config).num_parameters().total < 10**6
    if small:
        GPTModel(config)(torch.zeros(1, min(4, config.context_length), dtype=torch.long))


def test_overrides_of_trainings_work_or_are_refused(generators: Iterator[random.Random]) -> None:
    keys = [key for key in TRAIN.settings() if key not in ("resume", "init_from")]
    groups = list(TRAIN.choices())
    for rng in generators:
        arguments = []
        for _ in range(rng.choice((1, 2, 3))):
            if rng.random() < 0.3:
                group = rng.choice(groups)
                arguments.append(f"{group}={rng.choice(sorted(options(TRAIN, group, [conf_dir()])))}")
            else:
                arguments.append(
                    f"{rng.choice(('', '', '+', '++'))}{rng.choice(keys)}={rng.choice(COMMAND_LINE_VALUES)}"
                )
        result_or_user_error(lambda arguments=arguments: compose(*arguments), arguments)


def test_settings_of_generation_work_or_are_refused(generators: Iterator[random.Random]) -> None:
    torch.manual_seed(0)
    model = GPTModel({**tiny(), "pos": "rope"}).eval()
    ids = torch.arange(4)[None]
    keys = sorted(GENERATE.settings())
    for rng in generators:
        arguments = [f"{rng.choice(keys)}={rng.choice(COMMAND_LINE_VALUES)}" for _ in range(rng.choice((1, 2, 3)))]
        arguments += rng.choice(([], ["strategy=beam"], ["strategy=contrastive"], ["strategy=lookup"], ["greedy=true"]))
        task = result_or_user_error(lambda arguments=arguments: read_task(arguments, [conf_dir()]), arguments)
        if isinstance(task, tuple):
            settings = task[1]
            settings.max_new_tokens, settings.compile = min(settings.max_new_tokens, 3), False
            if settings.num_return_sequences * settings.num_beams < 100 and settings.strategy != "speculative":
                result_or_user_error(lambda settings=settings: generate(model, ids, settings), arguments)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a tiny model with the settings of a run."""
    meta = {"run": compose("tokenizer=byte").to_dict(), "progress": {"step": 1}, "training": 1}
    model = GPTModel({**tiny(), "vocab_size": 256})
    return save_checkpoint(tmp_path / "saved", model, build_tokenizer("byte", None), meta=meta)


def with_random_change(rng: random.Random, value: Any) -> Any:
    """Return a JSON value in which one random element is replaced, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        if rng.random() < 0.1:
            return {**value, rng.choice(TEXTS): rng.choice(HOSTILE)}
        return {**value, key: with_random_change(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        return [*value[:index], with_random_change(rng, value[index]), *value[index + 1 :]]
    return rng.choice(HOSTILE)


def damage_json(rng: random.Random, path: Path) -> None:
    """Change one element of a JSON file, or some of its bytes."""
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.8:
        path.write_text(json.dumps(with_random_change(rng, json.loads(text))), encoding="utf-8")
        return
    content = bytearray(text.encode())
    for _ in range(rng.choice((1, 5))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def test_damaged_json_files_of_checkpoints_are_read_or_refused(
    generators: Iterator[random.Random], saved: Path, tmp_path: Path
) -> None:
    names = sorted(path.name for path in saved.glob("*.json") if path.name != MANIFEST)
    for rng in generators:
        copy = tmp_path / "copy"
        shutil.copytree(saved, copy)
        name = rng.choice(names)
        damage_json(rng, copy / name)
        (copy / MANIFEST).unlink()
        write_manifest(copy)
        for read in (load_checkpoint, load_config):
            result_or_user_error(lambda read=read, copy=copy: read(copy), (name, (copy / name).read_bytes()[:2000]))
        shutil.rmtree(copy)


def test_damaged_json_files_of_model_folders_are_read_or_refused(
    generators: Iterator[random.Random], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    originals = tmp_path / "originals"
    for model_type, pos in (("gpt2", "learned"), ("modular_gpt", "rope")):
        GPTModel({**tiny(), "pos": pos}).save_pretrained(originals / model_type)
    folders = sorted(originals.iterdir())
    for rng in generators:
        copy = tmp_path / "copy"
        shutil.copytree(rng.choice(folders), copy)
        path = rng.choice(sorted(copy.glob("*.json")))
        damage_json(rng, path)
        result_or_user_error(lambda copy=copy: load_model(copy), (path.name, path.read_bytes()[:2000]))
        shutil.rmtree(copy)
