"""Patterns of layer variants."""

import pytest

from modular_gpt import ConfigError, GPTConfig, GPTModel, LayersConfig
from tests.components.cases import MODEL
from tests.components.laws import LAWS, Law

LOCAL = {"local": {"attention": {"window": 5}}, "dense": {"ffn": "swiglu"}}


def pattern(n_layers: int, **layers: object) -> list[str]:
    return LayersConfig(variants=LOCAL, **layers).pattern(n_layers)


def test_uniform_by_default() -> None:
    assert LayersConfig().pattern(3) == ["base"] * 3
    config = GPTConfig(**MODEL)
    given = (config.attention, config.ffn, config.norm, config.pos, "pre", 1.0, None)
    assert all(layer == given for layer in config.given_layers)
    assert len(set(map(id, config.layer_configs))) == 1  # resolved once for all layers


def test_a_cycle_repeats_and_is_cut() -> None:
    assert pattern(7, cycle=["local", "local", "base"]) == ["local", "local", "base"] * 2 + ["local"]


def test_prefix_and_suffix_surround_the_cycle() -> None:
    assert pattern(6, prefix=["dense", "dense"], cycle=["local", "base"], suffix=["dense"]) == [
        "dense", "dense", "local", "base", "local", "dense",
    ]  # fmt: skip
    assert pattern(2, prefix=["dense"], suffix=["local"]) == ["dense", "local"]


def test_overrides_keep_other_settings_and_another_name_starts_from_defaults() -> None:
    config = GPTConfig(
        **{**MODEL, "n_layers": 3},
        attention={"name": "mha", "n_kv_heads": 2, "softcap": 9.0},
        layers={
            "variants": {
                "local": {"attention": {"window": 5}},
                "other": {"attention": {"name": "mqa"}, "norm": "rmsnorm"},
            },
            "cycle": ["base", "local", "other"],
        },
    )
    base, local, other = config.layer_configs
    assert (base.attention.n_kv_heads, base.attention.window, base.attention.softcap) == (2, None, 9.0)
    assert (local.attention.n_kv_heads, local.attention.window, local.attention.softcap) == (2, 5, 9.0)
    assert (other.attention.n_kv_heads, other.attention.softcap, other.norm.name) == (1, None, "rmsnorm")
    model = GPTModel(config)
    assert [type(block.attention_norm).__name__ for block in model.blocks] == ["LayerNorm", "LayerNorm", "RMSNorm"]
    assert [block.attention.key.out_features for block in model.blocks] == [16, 16, 8]


MIXED = {
    "every slot": {
        "variants": {
            "a": {"attention": "linear", "ffn": {"name": "moe", "n_experts": 4}},
            "b": {"attention": {"name": "mla", "window": 5}, "norm": "rmsnorm", "pos": "none"},
            "c": {"attention": {"name": "swa", "window": 7, "n_kv_heads": 1}, "pos": {"theta": 50.0}},
        },
        "prefix": ["a"],
        "cycle": ["b", "c", "base"],
    },
    "two windows": {
        "variants": {"short": {"attention": {"window": 3}}, "long": {"attention": {"window": 9}}},
        "cycle": ["short", "long"],
        "suffix": ["base"],
    },
}
COMPILED_LATER = ("half_precision",)


@pytest.mark.parametrize(
    "law", [law for law in LAWS if law.__name__ not in COMPILED_LATER], ids=lambda law: law.__name__
)
@pytest.mark.parametrize("layers", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("pos", ["rope", "alibi"])
def test_mixed_layers_satisfy_the_laws(layers: dict, law: Law, pos: str) -> None:
    if pos == "alibi":
        layers = {**layers, "variants": {name: without(slots) for name, slots in layers["variants"].items()}}
    law(GPTConfig(**{**MODEL, "n_layers": 5, "pos": pos, "layers": layers}))


def without(slots: dict) -> dict:
    """Remove settings that are incompatible with alibi: linear attention, and settings of rope."""
    kept = {slot: settings for slot, settings in slots.items() if slot != "pos" or settings == "none"}
    return {slot: settings for slot, settings in kept.items() if settings != "linear"}


def refused(**layers: object) -> str:
    with pytest.raises(ConfigError) as error:
        GPTConfig(**MODEL, layers=layers)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_variant_is_named_with_the_closest() -> None:
    message = refused(variants=LOCAL, cycle=["lokal", "base"])
    assert message == "layers: no variant 'lokal'; did you mean 'local'? there are: base, dense, local"
    for place in ({"suffix": ["dnse"]}, {"prefix": ["dnse"]}, {"cycle": ["base", "dnse"]}):
        assert "no variant 'dnse'; did you mean 'dense'?" in refused(variants=LOCAL, **place)


def test_more_named_layers_than_layers() -> None:
    message = refused(variants=LOCAL, prefix=["dense", "dense"], suffix=["local"])
    assert message == "layers names 3 first and last layers, but the model has n_layers=2"


def test_unknown_slots_settings_and_names_in_a_variant() -> None:
    message = refused(variants={"a": {"atention": "mha"}}, cycle=["a"])
    assert message.startswith("layers.variants.a: no slot 'atention'; did you mean 'attention'?")
    assert "no setting 'windw'; did you mean 'window'?" in refused(variants={"a": {"attention": {"windw": 3}}})
    assert "no ffn 'swiglue'; did you mean 'swiglu'?" in refused(variants={"a": {"ffn": "swiglue"}})
    assert "must be a mapping of slots to settings, got 'mha'" in refused(variants={"a": "mha"})
    assert "must be a name or a mapping of settings, got 3" in refused(variants={"a": {"attention": 3}})
    assert "cannot name 'base'" in refused(variants={"base": {"attention": {"window": 3}}})
    assert "no setting 'cycles'; did you mean 'cycle'?" in refused(cycles=["base"])
    assert "layers.cycle must be a list, got 'base'" in refused(cycle="base")


def test_an_invalid_variant_is_refused_like_a_model() -> None:
    assert "n_heads=4 does not divide into attention.n_kv_heads=3" in refused(
        variants={"a": {"attention": {"n_kv_heads": 3}}}, cycle=["a"]
    )
    assert refused(variants={"a": {"pos": "learned"}}, cycle=["a"]) == (
        "pos=learned is added once to the embeddings and cannot be set per layer; set it as pos"
    )
