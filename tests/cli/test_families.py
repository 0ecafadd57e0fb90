"""``family=``: components and settings of a well-known architecture, which every other setting overrides."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from modular_gpt import ConfigError, GPTModel, compose
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.families import GROUPS, family_files
from modular_gpt.core.registry import entries
from modular_gpt.model.config import GPTConfig
from tests.cli.conftest import TINY as TINY_RUN
from tests.cli.conftest import Run

FAMILIES = list(family_files([conf_dir()]))
TINY = ("model_size.d_model=32", "model_size.n_heads=4", "model_size.n_layers=3", "model_size.context_length=32")


def model(*arguments: str, **more: Any) -> GPTConfig:
    return compose(*arguments, **more).model


def test_a_setting_on_top_of_a_family() -> None:
    config = model("family=qwen3", "attention.n_kv_heads=4", "norm.eps=1e-3", "model.tie_embeddings=true")
    assert (config.attention.n_kv_heads, config.attention.qk_norm) == (4, "rmsnorm")
    assert (config.norm.eps, config.tie_embeddings, config.bias) == (1e-3, True, False)


@pytest.mark.parametrize("order", [1, -1])
def test_another_component_brings_its_default_settings(order: int) -> None:
    config = model(*["family=deepseek_v3", "attention=gqa", "ffn=mlp", "layers=uniform"][::order])
    assert config.attention == entries("attention")["gqa"].default() and config.ffn == entries("ffn")["mlp"].default()
    assert config.norm.eps == 1e-6 and not config.bias and not config.layers.variants


def test_each_group_of_a_family_is_merged() -> None:
    lines = (conf_dir() / "train.yaml").read_text()
    assert all(f"settings_schema/{group}@{group}: ${{family}}_" in lines for group in GROUPS)


def test_an_experiment_overrides_a_family() -> None:
    arguments = ("family=gpt2", "experiment=speedrun")
    for config in (model(*arguments), model(*reversed(arguments))):
        assert (config.norm.name, config.ffn.name, config.pos.name) == ("rmsnorm", "swiglu", "learned")


def test_without_a_family_nothing_changes() -> None:
    assert model("family=null") == model("family=qwen3", "family=null") == model()


def test_sizes_keep_the_published_ratios() -> None:
    """Mistral 7B: 8 of 32 heads, windows of half the context, 14,336 of 4,096 channels."""
    config = model("family=mistral", "model_size=gpt2-large")  # 20 heads, 1280 wide, context 1024
    assert (config.attention.n_kv_heads, config.attention.window, config.ffn.hidden) == (5, 512, 4480)
    assert model("family=gemma2", "model_size.d_model=64").embed_scale == 8.0
    assert model("family=gpt_neox", "model_size.d_model=512", "model_size.n_heads=8").pos.rotary_dim == 16
    assert model("family=gemma3", "model_size.n_heads=6", "model_size.d_model=96").attention.n_kv_heads == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", ["d_model=24 n_heads=3 n_layers=1 context_length=8", "d_model=1024 n_heads=16"])
def test_a_family_composes_in_every_size(family: str, size: str) -> None:
    config = model(f"family={family}", *(f"model_size.{setting}" for setting in size.split()))
    with torch.device("meta"):
        GPTModel(config)


ONE_STEP = [(family, attention) for family in FAMILIES for attention in entries("attention")]


@pytest.mark.parametrize(("family", "attention"), ONE_STEP)
def test_a_family_trains_with_every_attention(family: str, attention: str) -> None:
    """One step on two windows lowers the loss on them, or one sentence refuses the combination."""
    config = model(f"family={family}", *TINY).to_dict()
    try:  # equal to the composed config (see above), and faster
        net = GPTModel({**config, "vocab_size": 17, "attention": attention})
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 250
        assert (family, attention) in REFUSED, error
        return
    assert (family, attention) not in REFUSED
    torch.manual_seed(0)
    ids = torch.randint(17, (2, 17))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    before = net(ids[:, :-1], ids[:, 1:]).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        after = net(ids[:, :-1], ids[:, 1:]).loss
    assert after < before


RECURRENT = ("gated_delta", "kda", "lightning", "linear", "shortconv")
REFUSED = {
    # their layers set a window
    *((family, attention) for family in ("gemma2", "gemma3", "cohere2", "gpt_oss") for attention in RECURRENT),
    *(("bloom", attention) for attention in RECURRENT),  # ALiBi adds to scores
    *(("gpt_neox", attention) for attention in RECURRENT if attention != "linear"),  # a quarter of no rotated width
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["family=qwen33"], "did you mean 'qwen3'"),
        (["family=qwen3", "attention=mla", "attention.n_kv_heads=2"], "no setting 'n_kv_heads'"),
        (["family=gpt2", "norm.weight_of=1"], "no setting 'weight_of' of norm"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(*arguments)


MINE = """# @package _global_
# Llama with windows
defaults:
  - override /attention: gqa
  - override /norm: rmsnorm
family:
  attention: {window: '${scaled:context_length,1/2,16}', n_kv_heads: '${scaled:n_heads,1/2}'}
  ffn: {hidden: '${scaled:d_model,2}'}
"""


def test_a_family_of_the_user(tmp_path: Path) -> None:
    """It is read again after an edit, and also sets settings of default options."""
    path = tmp_path / "family" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(MINE)
    config = model("family=mine", config_dir=str(tmp_path))
    assert (config.attention.name, config.attention.window, config.attention.n_kv_heads) == ("gqa", 128, 2)
    assert (config.ffn.name, config.ffn.hidden, config.norm.name) == ("mlp", 256, "rmsnorm")
    path.write_text(MINE.replace("1/2,16", "1/4,16"))
    os.utime(path, ns=(1, 1))
    assert model("family=mine", config_dir=str(tmp_path)).attention.window == 64
    assert model("family=mine", "model_size.context_length=8", config_dir=str(tmp_path)).attention.window == 16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("n_kv_heads:", "n_kv_head:"), "n_kv_head"),
        (("  ffn: {", "  optim: {"), "family.optim has to be"),
        (("  ffn: {", "  fnn: {"), "family.fnn has to be a mapping with settings of one of attention, ffn"),
        (("{hidden: '${scaled:d_model,2}'}", "3"), "family.ffn has to be a mapping"),
        (("scaled:d_model", "scaled:width"), "'width'; there are: head_dim, d_model"),
        (("d_model,2}", "d_model,much}"), "much"),
    ],
)
def test_mistakes_in_a_family_of_the_user(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "family" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(MINE.replace(*change))
    with pytest.raises(ConfigError, match=message) as caught:
        compose("family=mine", config_dir=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_several_families_in_one_command(run: Run, corpus: str) -> None:
    """Each job has its own components, and a run is named after its family."""
    answer = run("train", "--multirun", "family=gpt2,deepseek_v3", "norm.eps=0.001", *corpus.split(), *TINY_RUN)
    assert answer.code == 0, answer.err
    assert "run 1: gpt2" in answer.out and "run 2: deepseek_v3" in answer.out
    listed = run("compare", "family=gpt2,llama,qwen3,gemma2,olmo2", "--cfg", "job").out
    assert [line for line in listed.splitlines() if "variant" in line][1:] == [
        f"# variant {name}" for name in ("llama", "qwen3", "gemma2", "olmo2")
    ]


def test_help_names_the_families(run: Run) -> None:
    answer = run("train", "--help", "family")
    assert all(f"\n  {family} " in answer.out for family in FAMILIES)
    assert "override /attention: mla" in run("train", "--help", "family=deepseek_v3").out
