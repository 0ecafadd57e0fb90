"""Null settings are resolved once, when the config is read; the settings as given stay unchanged."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.registry import entries
from tests.components.cases import MODEL

# Nulls that mean "none" and not a default.
OFF = {"conv", "window", "softcap", "qk_norm", "clip_qkv", "q_lora_rank", "latent_norm"}
OFF |= {"stride", "dilation", "chunk"}  # of non-default patterns of sparse attention
OFF |= {"output_gate"}  # null: no gate
OFF |= {"rank"}  # null: projections of full rank
SLOTS = ("attention", "ffn", "norm", "pos")


@pytest.mark.parametrize(("slot", "name"), [(slot, name) for slot in SLOTS for name in entries(slot)])
def test_no_null_that_stands_for_a_default_reaches_a_component(slot: str, name: str) -> None:
    config = GPTConfig(**{**MODEL, slot: name})
    resolved = getattr(config.layer_configs[0], slot)
    assert not [f.name for f in fields(resolved) if f.name not in OFF and getattr(resolved, f.name) is None]
    again = GPTConfig(**{**MODEL, slot: resolved})
    assert getattr(again.layer_configs[0], slot) == resolved  # no further null to resolve


def test_the_config_keeps_the_given_settings() -> None:
    config = GPTConfig(**MODEL)
    assert config.attention.head_dim is None and config.layer_configs[0].attention.head_dim == 8
    assert config.to_dict()["attention"]["head_dim"] is None
    assert GPTConfig.from_dict(config.to_dict()) == config


def test_a_variant_derives_its_own_defaults() -> None:
    variants = {"wide": {"attention": {"head_dim": 16}}, "mla": {"attention": "mla"}}
    config = GPTConfig(**{**MODEL, "n_layers": 3}, layers={"variants": variants, "prefix": ["wide", "mla"]})
    wide, mla, base = (layer.attention for layer in config.layer_configs)
    assert (wide.head_dim, base.head_dim) == (16, 8)
    assert wide.scale == pytest.approx(16**-0.5) and base.scale == pytest.approx(
        8**-0.5
    )  # derived from the head width of each
    assert [layer.pos.rotary_dim for layer in config.layer_configs] == [16, mla.qk_rope_head_dim, 8]
    assert GPTModel(config).config.given_layers[0].attention.scale is None


def test_printed_models_show_the_given_settings() -> None:
    printed = repr(GPTModel(**{**MODEL, "attention": {"name": "gqa", "n_kv_heads": 2}}))
    assert "gqa, n_kv_heads=2; pos rope" in printed
    assert "head_dim" not in printed and "rotary_dim" not in printed


def test_only_resolved_replaces_nulls() -> None:
    """In the files of components only ``resolved`` and its helpers replace a setting that is None."""
    folder = Path(entries("attention")["mha"].component.__module__.replace(".", "/")).parents[1]
    root = Path(__file__).resolve().parents[2]
    for path in (root / folder).glob("*/*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and function.name != "resolved":
                for node in ast.walk(function):
                    filled = isinstance(node, ast.IfExp) and "config." in ast.unparse(node.test)
                    assert not (filled and "dims." in ast.unparse(node)), f"{path.name}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(d_model=30), "d_model=30 does not divide into n_heads=4; change one, or set attention.head_dim"),
        (dict(d_model=30, attention="linear"), "or set attention.head_dim"),
        (dict(d_model=30, attention="mla"), "or set attention.qk_nope_head_dim and attention.v_head_dim"),
        (dict(d_model=4, attention="mla"), "d_model=4 leaves no latent of d_model / 8; set attention.kv_lora_rank"),
        (
            dict(d_model=7, n_heads=1, pos="sinusoidal", layers={"variants": {"a": {"pos": "none"}}, "cycle": ["a"]}),
            "sinusoidal",
        ),
    ],
    ids=str,
)
def test_a_default_that_cannot_be_derived_is_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        GPTConfig(**{**MODEL, **settings})
    assert sentence in str(error.value) and "\n" not in str(error.value)
