"""A type of models that no library knows, described in a few lines, is read and written by them."""

import pytest
import torch

from modular_gpt import GPTModel
from modular_gpt.core.errors import UserError
from modular_gpt.mapping import ModelMapping, by_names, expand, key, layers, lines, modules
from modular_gpt.mapping.setting_map import only, switch
from modular_gpt.mapping.tensor_map import FUSED
from modular_gpt.model.materialize import saved_tensors

LAYER = "h.{layer}"
SOME = ModelMapping(
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


def test_keys_are_read() -> None:
    config = SOME.config(GIVEN)
    assert (config.vocab_size, config.d_model, config.embed_scale, config.ffn.name) == (7, 8, 3.0, "swiglu")
    assert [layer.attention.window for layer in config.layer_configs] == [4, None, 4]
    assert config.norm.eps == 1e-3, "by default"


def test_what_is_written_is_read_again() -> None:
    config = SOME.config(GIVEN)
    written = SOME.to_hf(config)
    assert {name: written[name] for name in ("width", "squared_scale", "gated", "types", "dialect")} == {
        "width": 8, "squared_scale": 9.0, "gated": True, "types": GIVEN["types"], "dialect": "plain",
    }  # fmt: skip
    assert SOME.config({**written, "window": 4}) == config


@pytest.mark.parametrize(
    ("change", "words"),
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
def test_what_is_not_described_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SOME.config({**GIVEN, **change})


def test_tensors_go_both_ways() -> None:
    model = GPTModel(SOME.config(GIVEN))
    ours = {name: tensor.detach() for name, tensor in saved_tensors(model).items()}
    theirs = {pair.hf_name: pair.joined(ours) for pair in expand(SOME.rules, ours, model.config)}
    attention = model.blocks[1].attention
    parts = [getattr(attention, name).weight for name in ("query", "key", "value")]
    assert torch.equal(theirs["h.1.qkv.weight"], torch.cat(parts))
    blank = {name: torch.zeros_like(tensor) for name, tensor in ours.items()}
    for pair in expand(SOME.rules, blank, model.config):
        pair.fill(blank, theirs[pair.hf_name])
    assert all(torch.equal(blank[name], tensor) for name, tensor in ours.items())
