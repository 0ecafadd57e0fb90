"""A sampling filter is one row of a table, from which its settings, help and validation follow."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from modular_gpt import ConfigError
from modular_gpt.generation import GenerationConfig, SamplingSettings, generate, sampling
from modular_gpt.generation.config import RANDOM
from modular_gpt.generation.sampling import FILTERS
from tests.fresh import python
from tests.generation.models import prompts, tiny

ROOT = Path(__file__).parents[2]
OTHER = {"temperature": 0.5, "top_k": 3}  # a value that enables each filter; 0.5 for probabilities and penalties
NAMES = [row.name for row in FILTERS]


def on(name: str) -> float:
    row = next(row for row in FILTERS if row.name == name)
    return OTHER.get(name, 2 if row.value_type == (int | None) else 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_each_row_defines_a_setting_with_default_and_help(name: str) -> None:
    row = next(row for row in FILTERS if row.name == name)
    assert getattr(SamplingSettings(), name) == getattr(GenerationConfig(), name) == row.default
    assert row.help and row.source.startswith("https://")
    row.check(name, on(name))
    with pytest.raises(ConfigError, match=name):
        generate(tiny(), prompts(), 2, **{name: float("inf") if row.value_type is float else -1})


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("strategy", ["beam", "contrastive"])
def test_deterministic_strategies_refuse_filters_of_the_distribution(name: str, strategy: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy={strategy} has no use for {name}"):
        generate(tiny(), prompts(), 2, strategy=strategy, **{name: on(name)})
    with pytest.raises(ConfigError, match=f"greedy=true .* has no use for {name}"):
        generate(tiny(), prompts(), 2, greedy=True, **{name: on(name)})


@pytest.mark.parametrize("name", NAMES)
def test_each_filter_keeps_a_token_in_every_row(name: str) -> None:
    settings = SamplingSettings(**{name: on(name)})
    sampler = sampling.Sampler(settings, 13, torch.device("cpu"))
    logits = 3 * torch.randn(20, 13)
    text = sampling.TokenBuffer(torch.randint(0, 13, (20, 30)), 0)
    probabilities = sampler.distribution(logits, text)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(20))


ROW = """
    Filter(
        "top_n_sigma",
        lambda logits, n: logits.masked_fill(logits < logits.amax(-1, True) - n * logits.std(-1, True), -torch.inf),
        "keep the tokens whose logit lies within n standard deviations of the largest one",
        above_zero,
        source="https://arxiv.org/abs/2411.07641",
    ),
"""

USE = """
import sys, torch
from modular_gpt import ConfigError, GPTModel
from modular_gpt.cli.generate import main
from modular_gpt.generation import GenerationConfig

torch.manual_seed(0)
model = GPTModel(vocab_size=50, d_model=16, n_heads=2, n_layers=1, context_length=32)
ids = torch.tensor([[1, 2, 3]])
greedy = model.generate(ids, 8, greedy=True)
assert torch.equal(model.generate(ids, 8, top_n_sigma=1e-6, seed=0), greedy)
assert not torch.equal(model.generate(ids, 8, seed=0), greedy)
for wrong in ({"strategy": "beam"}, {"strategy": "contrastive"}, {"greedy": True}, {"top_n_sigma": -1.0}):
    try:
        model.generate(ids, 8, **{"top_n_sigma": 1.0, **wrong})
        raise SystemExit(f"{wrong} was not refused")
    except ConfigError as error:
        print(error)
assert main(["--help"]) == 0
assert main(["--cfg", "job", "top_n_sigma=1.5"]) == 0
sys.path.insert(0, "docs/scripts")
import tables
print(tables.TABLES["sampling"]())
"""


def test_a_new_filter_takes_one_row(tmp_path: Path) -> None:
    for folder in ("modular_gpt", "conf", "docs/scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    table = tmp_path / "modular_gpt" / "generation" / "sampling.py"
    code = table.read_text()
    place = '    Filter(\n        "top_k",'
    assert code.count(place) == 1
    table.write_text(code.replace(place, ROW.strip("\n") + "\n" + place))
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])  # docs/scripts imports tests
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    done = python("-c", USE, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, _, rest = done.stdout.partition("mgpt-generate")
    assert refused.count("has no use for top_n_sigma") == 3 and "top_n_sigma must be above 0" in refused
    assert "top_n_sigma=null" in rest and "within n standard deviations" in rest, "in --help"
    assert "top_n_sigma: 1.5" in rest, "in --cfg job"
    assert "| `top_n_sigma` | off |" in rest, "in the table of the page"
