"""A config is written with all settings and read back equal."""

import dataclasses
import json

import pytest

from modular_gpt import ConfigError, GPTConfig, LayersConfig
from modular_gpt.core.registry import entries, slots
from tests.components.cases import ALL, MODEL, Case, parametrize

CHANGED = dict(
    vocab_size=31, d_model=48, n_heads=6, n_layers=5, context_length=24, dropout=0.1, bias=False, attention="gqa",
    ffn={"name": "moe", "top_k": 3}, norm="rmsnorm", pos={"name": "rope", "scaling": {"kind": "linear", "factor": 2.0}},
    layers={"name": "mix", "variants": {"local": {"attention": {"window": 3}}}, "prefix": ["local"], "cycle": ["base"],
            "suffix": ["local"]},
    topology="sandwich", residual_multiplier=0.5, residual_weights=[2.0, 1.0, 0.5, 1.0], embed_scale=2.0,
    embed_norm=True,
    embed_width=40, final_norm=False,
    tie_embeddings=False, head_bias=True, logit_scale=0.5, logit_softcap=30.0, init="xavier", init_std=0.1,
    init_residual="zero", init_head="zero", init_by_name=True,
)  # fmt: skip


def test_every_field_of_the_model() -> None:
    config, default = GPTConfig(**CHANGED), GPTConfig()
    assert set(CHANGED) == {field.name for field in dataclasses.fields(GPTConfig)}
    assert not [name for name in CHANGED if getattr(config, name) == getattr(default, name)]
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@parametrize(ALL)
def test_every_field_of_every_component(case: Case) -> None:
    config = case.config()
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    component = getattr(config, case.slot)
    assert component.name == case.name
    assert all(getattr(component, name) == value for name, value in case.settings.items())


def test_every_default_is_written() -> None:
    written = GPTConfig().to_dict()
    assert written["format"] == 1
    assert set(written) == {"format", *(field.name for field in dataclasses.fields(GPTConfig))}
    for slot in slots():
        if slot in written:
            config = getattr(GPTConfig(), slot)
            assert set(written[slot]) == {field.name for field in dataclasses.fields(config)}
    assert set(written["layers"]) == {field.name for field in dataclasses.fields(LayersConfig)}


def test_the_written_dict_is_a_copy() -> None:
    config = GPTConfig(**CHANGED)
    written = config.to_dict()
    written["layers"]["variants"]["local"]["attention"]["window"] = 99
    written["pos"]["scaling"]["factor"] = 99.0
    assert config == GPTConfig(**CHANGED)


def test_a_partial_dict_is_completed_with_defaults() -> None:
    config = GPTConfig.from_dict({"d_model": 64, "attention": {"name": "mla"}})
    assert config == GPTConfig(d_model=64, attention="mla")
    assert GPTConfig.from_dict({}) == GPTConfig()


@pytest.mark.parametrize("slot", ["attention", "ffn", "norm", "pos"])
def test_a_component_by_name_mapping_or_config(slot: str) -> None:
    for name, entry in entries(slot).items():
        by_name = getattr(GPTConfig(**{**MODEL, slot: name}), slot)
        assert by_name == getattr(GPTConfig(**{**MODEL, slot: {"name": name}}), slot) == entry.default()
        assert by_name == getattr(GPTConfig(**{**MODEL, slot: entry.default()}), slot)
        if not entry.settings:  # a Config without a name means the component itself
            assert by_name == getattr(GPTConfig(**{**MODEL, slot: entry.component.Config()}), slot)


def test_one_config_does_not_change_with_another_made_from_it() -> None:
    first = GPTConfig(**CHANGED)
    second = dataclasses.replace(first, n_layers=2)
    second.pos.scaling["factor"] = 7.0
    second.layers.variants["local"]["attention"] = {"window": 9}
    assert first == GPTConfig(**CHANGED)
    assert len(second.layer_configs) == 2


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="this config has format 2, this version reads 1; update modular_gpt"):
        GPTConfig.from_dict({**GPTConfig().to_dict(), "format": 2})


def test_integers_are_read_as_floats_where_floats_are_declared() -> None:
    config = GPTConfig.from_dict({"logit_softcap": 30, "attention": {"name": "mha", "softcap": 50}})
    assert isinstance(config.logit_softcap, float) and isinstance(config.attention.softcap, float)
