"""Each mapping between keys of a config.json and settings reads and writes as documented."""

from typing import Any

import pytest

from modular_gpt import CheckpointError, GPTConfig
from modular_gpt.mapping import HFConfig, KeyTree, ModelView, by_names, by_number, key, layers
from modular_gpt.mapping.setting_map import (
    PerLayer,
    enabled_by,
    inside,
    joined,
    named,
    needed,
    only,
    read_keys,
    write_keys,
)

MODEL: dict[str, Any] = {"attention": "mha", "ffn": "mlp", "norm": "rmsnorm", "pos": "rope"}
START: KeyTree = ({f"{slot}.name": name for slot, name in MODEL.items()}, "num_hidden_layers = n_layers")
WINDOW = "attention@mha.window"


def read(keys: KeyTree, **given: Any) -> dict[str, Any]:
    return dict(joined(keys).from_hf(HFConfig({"num_hidden_layers": 3, **given})))


def write(keys: KeyTree, config: GPTConfig, **defaults: Any) -> dict[str, Any]:
    return write_keys([joined(keys)], ModelView(config, defaults, {}))


def config(**settings: Any) -> GPTConfig:
    return GPTConfig.from_dict({**MODEL, "n_layers": 3, "d_model": 8, "n_heads": 2, **settings})


def test_the_sign_of_a_line_gives_its_direction() -> None:
    keys = ("a = d_model", "b => n_heads", "c <= n_layers", "embed_scale")
    assert read(keys, a=8, b=2, embed_scale=3.0) == {"d_model": 8, "n_heads": 2, "embed_scale": 3.0}
    assert write(keys, config()) == {"a": 8, "c": 3, "embed_scale": 1.0}


def test_braces_expand_to_several_lines() -> None:
    assert read("a = {d_model,n_heads}", a=8) == {"d_model": 8, "n_heads": 8}
    assert read("{a,b} = {d_model,n_heads}", a=8, b=2) == {"d_model": 8, "n_heads": 2}


def test_keys_of_nested_objects_are_read_and_written() -> None:
    keys = ("o.a = d_model", "o.i.b = n_heads")
    assert read(keys, o={"a": 8, "i": {"b": 2}}) == {"d_model": 8, "n_heads": 2}
    assert write(keys, config()) == {"o": {"a": 8, "i": {"b": 2}}}
    assert read(inside("o", "{a,b} = {d_model,n_heads}"), o={"b": 2}) == {"n_heads": 2}
    assert read(inside("o", "a = d_model"), o=None) == {}


def test_a_null_may_have_its_own_value() -> None:
    keys = key("a", "embed_scale", lambda value: value / 2, lambda value: value * 2, null=7.0)
    assert read(keys, a=None) == {"embed_scale": 7.0} and read(keys, a=4.0) == {"embed_scale": 2.0}
    assert write(keys, config(embed_scale=2.0)) == {"a": 4.0}
    with pytest.raises(KeyError, match="a"):
        read(needed("a", "d_model"), a=None)


def test_later_mappings_override_earlier_ones() -> None:
    assert read(({"d_model": 1}, ("a = d_model", [{"d_model": 3}])), a=2) == {"d_model": 3}


def test_mappings_may_be_enabled_by_a_key() -> None:
    keys = enabled_by("use", WINDOW, f"window = {WINDOW}")
    assert read(keys, use=True, window=4) == {WINDOW: 4} and read(keys, use=False, window=4) == {}
    settings = HFConfig({"use": False, "window": 4})
    keys.from_hf(settings)
    assert settings.unread({}) == [], "a window that is not used counts as read"
    assert write(keys, config(attention={"name": "mha", "window": 4})) == {"use": True, "window": 4}
    assert write(keys, config()) == {"use": False}


def test_values_are_translated_by_name() -> None:
    keys = named(
        "act", "ffn@mlp.activation", {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu"}, "act"
    )
    assert read(keys, act="gelu_fast") == {"ffn@mlp.activation": "gelu_tanh"}
    tanh = config(ffn={"name": "mlp", "activation": "gelu_tanh"})
    assert write(keys, tanh) == {"act": "gelu_new"} and write(keys, tanh, act="gelu_fast") == {"act": "gelu_fast"}
    with pytest.raises(CheckpointError, match="act 'gelu_old'"):
        read(keys, act="gelu_old")


def test_a_key_with_one_allowed_value() -> None:
    assert read(only(a=1), a=1) == {} == read(only(a=1)) and write(only(a=1), config()) == {"a": 1}
    with pytest.raises(CheckpointError, match="a=2, which is not supported: only 1 is"):
        read(only(a=1), a=2)


# layers of two types; each type has its own key for the same setting
LAYER_TYPES = layers(
    by_names("types", ("near", "far"), lambda i, settings: i % 2 == 0),
    ({"attention@mha.sinks": True}, key("near_heads", "attention@mha.n_kv_heads", lambda n: n + 1, lambda n: n - 1)),
    "far_heads = attention@mha.n_kv_heads",
    mark="attention@mha.window",
)


@pytest.mark.parametrize("types", [["near", "far", "near"], None])
def test_keys_of_two_layer_types_are_read(types: list[str] | None) -> None:
    found = read(LAYER_TYPES, types=types, near_heads=1, far_heads=4)
    assert found["attention@mha.n_kv_heads"] == PerLayer((2, 4, 2))
    settings = read_keys(
        [joined((START, LAYER_TYPES))], HFConfig({"num_hidden_layers": 3, "near_heads": 1, "far_heads": 4})
    )
    layer_configs = GPTConfig.from_dict({**settings, "d_model": 8, "n_heads": 4}).layer_configs
    assert [layer.attention.sinks for layer in layer_configs] == [True, False, True]


def test_keys_of_two_layer_types_are_written() -> None:
    given = {"types": ["near", "far", "near"], "near_heads": 1, "far_heads": 4, "window": 4}
    keys = (START, LAYER_TYPES, layers(by_number(lambda i, settings: i != 1), f"window = {WINDOW}"))
    settings = read_keys([joined(keys)], HFConfig({"num_hidden_layers": 3, **given}))
    written = write(LAYER_TYPES, GPTConfig.from_dict({**settings, "d_model": 8, "n_heads": 4}))
    assert written == {"types": ["near", "far", "near"], "near_heads": 1, "far_heads": 4}


def test_keys_of_an_absent_layer_type_may_have_any_value() -> None:
    found = read(LAYER_TYPES, types=["far"] * 3, near_heads="many", far_heads=4)
    assert found["attention@mha.n_kv_heads"] == PerLayer((4, 4, 4))
    with pytest.raises(TypeError):
        read(LAYER_TYPES, types=["near", "far", "far"], near_heads="many", far_heads=4)
