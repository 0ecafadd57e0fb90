"""A ``ModelMapping`` of an invented model type reads and writes its config and its tensors."""

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.core.errors import UserError
from modular_gpt.mapping import ModelMapping, by_names, expand, key, layers, lines, modules
from modular_gpt.mapping.setting_map import only, switch
from modular_gpt.mapping.tensor_map import FUSED
from modular_gpt.model.materialize import saved_tensors

LAYER = "h.{layer}"
MAPPING = ModelMapping(
    "some",
    (
        lines("vocab = vocab_size", "{width,num_hidden_layers} = {d_model,n_layers}", "eps = norm.eps"),
        key("squared_scale", "embed_scale", lambda squared: squared**0.5, lambda scale: scale**2),
        switch("gated", "ffn.name", "swiglu", "mlp"),
        layers(
            by_names("types", ("local", "global"), lambda i, settings: i % settings["every"] == 0, ["every"]),
            "window = attention.window",
            mark="attention.window",
        ),
        only(dialect="plain"),
        {"n_heads": 2, "bias": False, "attention.name": "mha", "norm.name": "rmsnorm"},
        {"pos.name": "rope", "tie_embeddings": True},
    ),
    (
        modules("{wte,ln_f} = {embedding,final_norm}"),
        modules("{ln_1,ln_2} = {attention,ffn}_norm", LAYER),
        modules("qkv = attention.query + attention.key + attention.value", LAYER, FUSED),
        modules("{o,gate,up,down} = {attention.out,ffn.gate,ffn.up,ffn.down}", LAYER),
    ),
    harmless={"author": ("me",)},
    defaults={"eps": 1e-3, "gated": False, "window": None, "squared_scale": 1.0, "dialect": "plain", "types": None},
    synonyms={"hidden": "width"},
)
GIVEN = {"vocab": 7, "hidden": 8, "num_hidden_layers": 3, "squared_scale": 9.0, "window": 4, "gated": True}
GIVEN |= {"types": ["local", "global", "local"], "author": "me"}


def test_keys_of_a_config_are_read() -> None:
    config = MAPPING.config(GIVEN)
    assert (config.vocab_size, config.d_model, config.embed_scale, config.ffn.name) == (7, 8, 3.0, "swiglu")
    assert [layer.attention.window for layer in config.layer_configs] == [4, None, 4]
    assert config.norm.eps == 1e-3, "the default"


def test_a_written_config_is_read_as_the_same_settings() -> None:
    config = MAPPING.config(GIVEN)
    written = MAPPING.to_hf(config)
    assert {name: written[name] for name in ("width", "squared_scale", "gated", "types", "dialect")} == {
        "width": 8, "squared_scale": 9.0, "gated": True, "types": GIVEN["types"], "dialect": "plain",
    }  # fmt: skip
    assert MAPPING.config({**written, "window": 4}) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dialect": "odd"}, "dialect='odd', which is not supported: only 'plain' is"),
        ({"author": "you"}, "author='you', which models of model_type=some do not have"),
        ({"width": 9}, "width=9 and hidden=8: remove one"),
        ({"hidden": "wide"}, "wide"),
        ({"types": ["local"]}, "types has 1 layers, but the model has 3"),
        ({"types": ["local", "far", "local"]}, "layer type 'far'"),
        ({"types": 5}, "a setting of a wrong type"),
        ({"types": None}, "lacks the setting 'every'"),
    ],
)
def test_keys_and_values_without_a_mapping_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MAPPING.config({**GIVEN, **change})


def test_tensors_are_converted_in_both_directions() -> None:
    model = GPTModel(MAPPING.config(GIVEN))
    tensors = {name: tensor.detach() for name, tensor in saved_tensors(model).items()}
    hf_tensors = {pair.hf_name: pair.joined(tensors) for pair in expand(MAPPING.rules, tensors, model.config)}
    attention = model.blocks[1].attention
    projections = [getattr(attention, name).weight for name in ("query", "key", "value")]
    assert torch.equal(hf_tensors["h.1.qkv.weight"], torch.cat(projections))
    restored = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    for pair in expand(MAPPING.rules, restored, model.config):
        pair.fill(restored, hf_tensors[pair.hf_name])
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())
