"""Yaml files: all compose, each registered component has one, and none repeats a default of its dataclass."""

from itertools import zip_longest
from pathlib import Path

import pytest
import torch
import yaml

from modular_gpt import GPTModel, compose
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.schema import SCHEMA, options
from modular_gpt.cli.composition.train_config import TRAIN
from modular_gpt.cli.setting_docs import plain_text
from modular_gpt.core.registry import entries, slots
from modular_gpt.model.config import GPTConfig
from modular_gpt.training.config import RunConfig

YAMLS = sorted(path.relative_to(conf_dir()) for path in conf_dir().glob("*/**/*.yaml"))


def overrides(path: Path) -> list[str]:
    """The command line override that selects the option of a yaml."""
    return [f"{path.parts[0]}={Path(*path.parts[1:]).with_suffix('').as_posix()}"]


# Options of these groups do not read each other's settings, so several are composed at once.
TOGETHER = [
    {"data", "layers", "logger", "model_size", "norm", "optim", "parallel", "schedule", "tokenizer", "trainer"},
    {"ffn", "pos"},
]


def composed_at_once() -> list[list[Path]]:
    """Rows of yamls that are composed together; every yaml is in one row."""
    by_group = {group: [path for path in YAMLS if path.parts[0] == group] for group in TRAIN.choices()}
    alone = [{group} for group in by_group if not any(group in groups for groups in TOGETHER)]
    columns = [[by_group[group] for group in sorted(groups)] for groups in (*TOGETHER, *alone)]
    return [[path for path in row if path] for column in columns for row in zip_longest(*column)]


@pytest.mark.parametrize("paths", composed_at_once(), ids=lambda paths: " ".join(map(str, paths)))
def test_every_yaml_composes(paths: list[Path]) -> None:
    config = compose(*(override for path in paths for override in overrides(path)))
    assert isinstance(config, RunConfig)


def test_every_yaml_is_in_a_row() -> None:
    assert sorted(path for paths in composed_at_once() for path in paths) == YAMLS


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_yaml_is_an_option_of_a_group_with_a_line_about_it(path: Path) -> None:
    listed = options(TRAIN, path.parts[0], [conf_dir()])
    assert listed[overrides(path)[0].partition("=")[2]]


def test_every_group_has_a_folder_and_every_folder_is_a_group() -> None:
    assert {path.parts[0] for path in YAMLS} == set(TRAIN.choices())


@pytest.mark.parametrize("slot", slots())
def test_every_registered_component_has_a_yaml(slot: str) -> None:
    assert {path.stem for path in YAMLS if path.parts[0] == slot} >= set(entries(slot))


def test_the_composed_default_is_the_dataclass_default() -> None:
    assert compose("trainer=default").to_dict() == RunConfig().to_dict()
    assert compose().model == GPTConfig()


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_yaml_has_one_line_of_comment_about_the_option(path: Path) -> None:
    lines = (conf_dir() / path).read_text().splitlines()
    comments = [line for line in lines if line.startswith("#") and not line.startswith("# @")]
    assert len(comments) == 1 and len(comments[0]) > 20, path
    assert lines.index(comments[0]) == (1 if lines[0].startswith("# @") else 0)


@pytest.mark.parametrize("slot", slots())
def test_the_yaml_of_a_component_agrees_with_the_code(slot: str) -> None:
    """The comment is the component's summary; the values are those of a preset, without repeated defaults."""
    for name, entry in entries(slot).items():
        if not entry.component.__module__.startswith("modular_gpt."):
            continue
        text = (conf_dir() / slot / f"{name}.yaml").read_text()
        values = yaml.safe_load(text)
        assert values.pop("defaults") == [f"{name}{SCHEMA}"]
        assert text.splitlines()[0] == f"# {plain_text(entry.summary)}", "write them anew: make docs"
        assert values == entry.settings


# A named size does not change with the defaults.
@pytest.mark.parametrize("group", ["layers", "trainer"])
def test_no_yaml_of_a_table_repeats_a_default(group: str) -> None:
    for path in (conf_dir() / group).glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        (schema,) = content.pop("defaults")
        defaults = TRAIN.schemas(group)[schema.removesuffix(SCHEMA)].defaults
        assert [key for key, value in content.items() if value == getattr(defaults, key)] == []


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_published_sizes_have_the_published_parameters(size: str, parameters: int) -> None:
    model = {**compose(f"model_size={size}", "pos=learned").model.to_dict(), "vocab_size": 50257}
    with torch.device("meta"):
        assert GPTModel(model).num_parameters().total == parameters


@pytest.mark.parametrize(("size", "dims"), [("nano", (4, 4, 128)), ("baby", (6, 6, 384)), ("small", (6, 8, 256))])
def test_small_sizes(size: str, dims: tuple[int, ...]) -> None:
    model = compose(f"model_size={size}").model
    assert tuple(getattr(model, key) for key in ("n_layers", "n_heads", "d_model")) == dims


def test_layer_patterns() -> None:
    def windows(*extra: str) -> list[int | None]:
        return [layer.attention.window for layer in compose("model_size=small", *extra).model.layer_configs]

    assert windows() == [None] * 6
    assert windows("layers=local_global_5to1") == [128] * 5 + [None]
    assert windows("layers=alternating") == [128, None] * 3
    moe = compose("model_size=small", "layers=dense_first_1", "ffn=moe").model
    assert [layer.ffn.name for layer in moe.layer_configs] == ["swiglu"] + ["moe"] * 5


def test_the_experiment_is_the_well_known_baseline() -> None:
    config = compose("experiment=shakespeare_char")
    assert (config.data.name, config.tokenizer.name) == ("shakespeare", "char")
    assert [getattr(config.model, k) for k in ("n_layers", "n_heads", "d_model", "context_length", "dropout")] == [
        4,
        4,
        128,
        64,
        0,
    ]
    assert (config.trainer.batch_size, config.trainer.max_steps, config.trainer.eval_batches) == (12, 2000, 0)
    assert compose("experiment=shakespeare_char", "data=text", "data.path=x").data.name == "text"


def test_the_speedrun_keeps_size_and_batches_of_the_baseline() -> None:
    quick, plain = compose("experiment=speedrun"), compose("experiment=shakespeare_char")
    size = ("n_layers", "d_model", "context_length")
    assert [getattr(quick.model, key) for key in size] == [getattr(plain.model, key) for key in size]
    assert (quick.data, quick.tokenizer, quick.trainer.batch_size) == (plain.data, plain.tokenizer, 12)
    assert quick.trainer.max_steps <= 260
    assert quick.trainer.eval_interval >= quick.trainer.max_steps and quick.trainer.eval_batches == 0


def test_composed_settings_are_cached_unchanged(tmp_path: Path) -> None:
    """Settings are applied to a copy of the cached composition; an edited yaml file is read again."""
    mine = tmp_path / "attention" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("defaults: [mha_schema]\nn_kv_heads: 2\n")
    first = compose("attention=mine", "seed=3", "attention.window=5", config_dir=str(tmp_path))
    again = compose("attention=mine", config_dir=str(tmp_path))
    assert (first.seed, first.model.attention.n_kv_heads, first.model.attention.window) == (3, 2, 5)
    assert (again.seed, again.model.attention.n_kv_heads, again.model.attention.window) == (0, 2, None)
    mine.write_text("defaults: [mha_schema]\nn_kv_heads: null\n")
    assert compose("attention=mine", config_dir=str(tmp_path)).model.attention.n_kv_heads != 2
