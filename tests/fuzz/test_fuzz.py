"""Random and hostile input at every interface works or raises a UserError: no other exception, hang or memory blow-up.

Seeded and in this process, so that all runs have the same cases.
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

MEMORY = 4 * 2**30  # bytes
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
WRITTEN = (
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
    "test_configs_of_models": 2000,
    "test_overrides_of_trainings": 150,
    "test_settings_of_generation": 300,
    "test_metadata_and_files_of_checkpoints": 200,
    "test_folders_of_other_programs": 200,
}


@pytest.fixture
def chances(request: pytest.FixtureRequest) -> Iterator[random.Random]:
    """A source of random numbers for each case of a test."""
    name = request.node.name
    seed = 100_000 * (1 + list(COUNTS).index(name))
    return (random.Random(seed + number) for number in range(COUNTS[name]))


def answered(action: Callable[[], Any], about: object) -> Any:
    """The result of an action, or the UserError that it raises, whose message must be one short line."""
    try:
        return action()
    except UserError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 5000, about
        return error
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error} for {str(about)[:2000]}")


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """No test needs more than 4 GiB; a size beyond any memory is refused before it is allocated."""
    before = peak()
    yield
    assert peak() - before < MEMORY


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tiny() -> dict[str, Any]:
    return {"vocab_size": 32, "d_model": 8, "n_heads": 2, "n_layers": 1, "context_length": 8}


def test_configs_of_models(chances: Iterator[random.Random]) -> None:
    fields = [name for name in GPTConfig.__dataclass_fields__ if name not in SLOTS]
    for chance in chances:
        given: dict[str, Any] = tiny()
        for _ in range(chance.choice((1, 1, 2, 3))):
            if chance.random() < 0.5:
                slot = chance.choice(SLOTS)
                name = chance.choice(sorted(entries(slot)))
                settings = list(entries(slot)[name].component.Config.__dataclass_fields__)
                given[slot] = {"name": name, chance.choice(settings): chance.choice(HOSTILE)}
            else:
                given[chance.choice(fields)] = chance.choice(HOSTILE)
        config = answered(lambda given=given: GPTConfig.from_dict(given), given)
        if isinstance(config, GPTConfig) and config.d_model * config.n_layers * config.vocab_size < 10**5:
            answered(lambda config=config: forward(config), given)


def forward(config: GPTConfig) -> None:
    """Run a small model on four tokens."""
    with torch.device("meta"):
        small = GPTModel(config).num_parameters().total < 10**6
    if small:
        GPTModel(config)(torch.zeros(1, min(4, config.context_length), dtype=torch.long))


def test_overrides_of_trainings(chances: Iterator[random.Random]) -> None:
    keys = [key for key in TRAIN.settings() if key not in ("resume", "init_from")]
    groups = list(TRAIN.choices())
    for chance in chances:
        arguments = []
        for _ in range(chance.choice((1, 2, 3))):
            if chance.random() < 0.3:
                group = chance.choice(groups)
                arguments.append(f"{group}={chance.choice(sorted(options(TRAIN, group, [conf_dir()])))}")
            else:
                arguments.append(f"{chance.choice(('', '', '+', '++'))}{chance.choice(keys)}={chance.choice(WRITTEN)}")
        answered(lambda arguments=arguments: compose(*arguments), arguments)


def test_settings_of_generation(chances: Iterator[random.Random]) -> None:
    torch.manual_seed(0)
    model = GPTModel({**tiny(), "pos": "rope"}).eval()
    ids = torch.arange(4)[None]
    keys = sorted(GENERATE.settings())
    for chance in chances:
        arguments = [f"{chance.choice(keys)}={chance.choice(WRITTEN)}" for _ in range(chance.choice((1, 2, 3)))]
        arguments += chance.choice(
            ([], ["strategy=beam"], ["strategy=contrastive"], ["strategy=lookup"], ["greedy=true"])
        )
        read = answered(lambda arguments=arguments: read_task(arguments, [conf_dir()]), arguments)
        if isinstance(read, tuple):
            settings = read[1]
            settings.max_new_tokens, settings.compile = min(settings.max_new_tokens, 3), False
            if settings.num_return_sequences * settings.num_beams < 100 and settings.strategy != "speculative":
                answered(lambda settings=settings: generate(model, ids, settings), arguments)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of a tiny model with the settings of a run."""
    notes = {"run": compose("tokenizer=byte").to_dict(), "progress": {"step": 1}, "training": 1}
    model = GPTModel({**tiny(), "vocab_size": 256})
    return save_checkpoint(tmp_path / "saved", model, build_tokenizer("byte", None), meta=notes)


def damaged(chance: random.Random, value: Any) -> Any:
    """A JSON value with one place changed at random."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        if chance.random() < 0.1:
            return {**value, chance.choice(TEXTS): chance.choice(HOSTILE)}
        return {**value, key: damaged(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], damaged(chance, value[place]), *value[place + 1 :]]
    return chance.choice(HOSTILE)


def damage(chance: random.Random, path: Path) -> None:
    """Change a JSON file at one place, or at some bytes."""
    text = path.read_text(encoding="utf-8")
    if chance.random() < 0.8:
        path.write_text(json.dumps(damaged(chance, json.loads(text))), encoding="utf-8")
        return
    content = bytearray(text.encode())
    for _ in range(chance.choice((1, 5))):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


def test_metadata_and_files_of_checkpoints(chances: Iterator[random.Random], saved: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in saved.glob("*.json") if path.name != MANIFEST)
    for chance in chances:
        copy = tmp_path / "copy"
        shutil.copytree(saved, copy)
        name = chance.choice(names)
        damage(chance, copy / name)
        (copy / MANIFEST).unlink()
        write_manifest(copy)
        for read in (load_checkpoint, load_config):
            answered(lambda read=read, copy=copy: read(copy), (name, (copy / name).read_bytes()[:2000]))
        shutil.rmtree(copy)


def test_folders_of_other_programs(chances: Iterator[random.Random], tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = tmp_path / "whole"
    for format, model in (("gpt2", "learned"), ("modular_gpt", "rope")):
        GPTModel({**tiny(), "pos": model}).save_pretrained(whole / format)
    folders = sorted(whole.iterdir())
    for chance in chances:
        copy = tmp_path / "copy"
        shutil.copytree(chance.choice(folders), copy)
        path = chance.choice(sorted(copy.glob("*.json")))
        damage(chance, path)
        answered(lambda copy=copy: load_model(copy), (path.name, path.read_bytes()[:2000]))
        shutil.rmtree(copy)
