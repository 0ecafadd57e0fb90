"""Sizes beyond any machine are refused in one sentence, before the model is built."""

import tracemalloc

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.validation import size_errors
from tests.components.cases import MODEL

HUGE = int("1" + "0" * 400)
TABLE = [
    (dict(n_layers=10**9), "model.n_layers must be at most 16,384, got 1000000000"),
    (dict(n_layers=2**70), "model.n_layers must have at most 64 bits"),
    (dict(context_length=10**12), "model.context_length must be at most 2,147,483,648"),
    (dict(d_model=HUGE), "model.d_model must have at most 64 bits, got a number of 401 digits"),
    (dict(d_model=10**5000), "got a number of 5001 digits"),
    (dict(d_model=4611686018427387904), "model.d_model must be at most 16,777,216"),
    (dict(n_heads=10**9, d_model=10**9), "model.d_model must be at most"),
    (dict(dropout=HUGE), "model.dropout must have at most 64 bits"),
    (dict(embed_scale=HUGE), "got a number of 401 digits"),
    (dict(attention={"name": "mha", "window": HUGE}), "attention.window must have at most 64 bits"),
    (dict(norm={"name": "layernorm", "eps": HUGE}), "norm.eps must have at most 64 bits"),
    (dict(ffn={"name": "moe", "n_experts": 10**9}), "ffn.n_experts must be at most 65,536"),
    (dict(layers={"prefix": [["a"]]}), "layers.prefix must be a list of names of variants, got [['a']]"),
    (dict(layers={"cycle": [1]}), "layers.cycle must be a list of names of variants, got [1]"),
    (dict(layers={"suffix": "base"}), "layers.suffix must be a list"),
    (
        dict(layers={"variants": {"a": {"block": 3}}, "cycle": ["a"]}),
        "a topology or a mapping of settings, got 3",
    ),
    (dict(layers={"variants": {"a": {"block": "prenorm"}}, "cycle": ["a"]}), "topology: no choice 'prenorm'"),
]


@pytest.mark.parametrize(("settings", "sentence"), TABLE, ids=[sentence[:50] for _, sentence in TABLE])
def test_refused_when_the_config_is_read(settings: dict, sentence: str) -> None:
    tracemalloc.start()
    try:
        for read in (lambda: GPTConfig(**{**MODEL, **settings}), lambda: GPTConfig.from_dict({**MODEL, **settings})):
            with pytest.raises(ConfigError) as error:
                read()
            assert sentence in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


OVERFLOWING = [
    dict(ffn={"name": "moe", "n_experts": 2**16, "hidden": 2**60}),
    dict(ffn={"name": "mlp", "hidden": 2**62}),
    dict(attention={"name": "mha", "head_dim": 2**60}),
    dict(attention={"name": "mha", "head_dim": 2**62}),
    dict(attention={"name": "mla", "qk_nope_head_dim": 2**62}),
]
FOR_NO_MACHINE = [
    dict(d_model=2**24, vocab_size=2**31, n_heads=1),
    dict(context_length=2**31, pos="learned", d_model=2**16, n_heads=1),
]


@pytest.mark.parametrize(
    ("device", "settings"),
    [("meta", settings) for settings in OVERFLOWING] + [("cpu", settings) for settings in OVERFLOWING + FOR_NO_MACHINE],
    ids=str,
)
def test_failures_while_building_get_one_sentence(device: str, settings: dict) -> None:
    config = GPTConfig(**{**MODEL, **settings})
    with torch.device(device), pytest.raises(ConfigError, match="the model is beyond the memory of this machine"):
        GPTModel(config)


def test_other_errors_are_not_caught() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), size_errors("the model"):
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(ConfigError, match="the table is beyond the memory"), size_errors("the table"):
        raise MemoryError
