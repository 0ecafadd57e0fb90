"""Settings in the vocabularies of other code bases, and the four ways to pass them."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.core.aliases import (
    COMPONENTS,
    MODEL_SETTINGS,
    SETTINGS,
    TRAINING_SETTINGS,
    VOCABULARIES,
    Vocabulary,
    vocabulary,
)
from modular_gpt.core.registry import decode, entries
from modular_gpt.model.aliases import NAMES, WORDS, read_config
from modular_gpt.nn.attention.mla import MultiHeadLatentAttention
from modular_gpt.nn.norm.rmsnorm import RMSNorm
from modular_gpt.training.config import SLOTS as RUN_SLOTS
from modular_gpt.training.config import RunConfig

SMALL = GPTConfig(vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=24, dropout=0.1)
SAMPLES = {"dropout": 0.5, "attention.dropout": 0.5, "ffn.activation": "relu", "ffn.bias": False, "norm.eps": 0.5,
           "attention.qkv_bias": False, "tie_embeddings": False, "init_std": 0.5, "logit_softcap": 3.0,
           "attention.softcap": 3.0, "pos.theta": 5.0, "d_model": 64}  # fmt: skip


@pytest.mark.parametrize(
    ("foreign", "pos"),
    [
        (dict(n_embd=32, n_head=4, n_layer=2, block_size=24, dropout=0.1), "learned"),
        (dict(emb_dim=32, n_heads=4, n_layers=2, context_length=24, drop_rate=0.1), "learned"),
        (
            dict(n_embd=32, num_heads=4, n_layers=2, block_size=24, dropout=0.1, attention_type="flash_attention"),
            "sinusoidal",
        ),
        (dict(d_model=32, num_heads=4, num_layers=2, max_seq_length=24, d_ff=128, dropout=0.1), "sinusoidal"),
        (
            dict(embedding_dimension=32, num_heads=4, num_layers=2, context_length=24, dropout_rate=0.1),
            "sinusoidal",
        ),
        (
            dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, max_position_embeddings=24, dropout=0.1),
            "rope",
        ),
        (dict(n_embd=32, n_head=4, n_kv_head=4, n_layer=2, sequence_len=24, dropout=0.1), "rope"),
        (dict(n_embd=32, n_head=4, n_query_groups=4, n_layer=2, block_size=24, dropout=0.1), "rope"),
        (dict(n_embd=32, num_heads=4, num_layers=2, block_size=24, dropout=0.1), "rope"),  # no complete vocabulary
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_the_same_model_in_the_settings_of_each_code_base(foreign: dict, pos: str) -> None:
    foreign = {"vocab_size": 31, **foreign}
    expected = dataclasses.replace(SMALL, pos=pos)
    if {"n_kv_head", "n_query_groups"} & foreign.keys():
        expected = dataclasses.replace(expected, attention={"name": "mha", "n_kv_heads": 4})
    if "d_ff" in foreign:
        expected = dataclasses.replace(expected, ffn={"name": "mlp", "hidden": 128})
    assert read_config(foreign) == expected
    assert read_config(SimpleNamespace(**foreign)) == expected
    assert read_config(**foreign) == expected
    for model in (GPTModel(foreign), GPTModel(SimpleNamespace(**foreign)), GPTModel(**foreign)):
        assert model.config == expected
    assert GPTModel(SMALL).config is SMALL
    assert read_config(pos="alibi", **foreign).pos.name == "alibi"


@pytest.mark.parametrize("whole", VOCABULARIES, ids=lambda vocabulary: vocabulary.origin)
def test_the_summary_lists_the_settings_implied_by_a_vocabulary(whole: Vocabulary) -> None:
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 1, "context_length": 24, "ffn.hidden": 64, "dropout": 0.1,
             "attention.n_kv_heads": 2, "attention.name": "flash_attention"}  # fmt: skip
    foreign = {
        name: sizes[MODEL_SETTINGS[name].targets[0] if name in MODEL_SETTINGS else name] for name in whole.settings
    }
    summary = GPTModel(foreign).summary()
    assert f"pos: {whole.pos}, as in models described by {' '.join(whole.settings)}" in summary
    assert "as in models described by" not in GPTModel(**foreign, pos="none").summary()
    for missing in foreign:  # an incomplete vocabulary implies no settings
        rest = {name: value for name, value in foreign.items() if name != missing}
        smaller = vocabulary(rest)
        assert read_config(**rest).pos.name == (smaller.pos if smaller else "rope")


@pytest.mark.parametrize("name", [name for name, alias in MODEL_SETTINGS.items() if not alias.note])
def test_a_single_foreign_setting_changes_only_its_counterpart(name: str) -> None:
    targets, implied, _ = MODEL_SETTINGS[name]
    slot, _, setting = targets[0].partition(".")
    if setting == "name":
        value: object = {"pos": "alibi", "attention": "linear", "ffn": "swiglu", "norm": "rmsnorm"}[slot]
        assert read_config({name: value}) == GPTConfig(**{slot: value})
        return
    value = SAMPLES.get(targets[0], 2)
    if not setting:
        assert read_config({name: value}) == GPTConfig(**{slot: value})
        return
    settings = {target.partition(".")[2]: value for target in targets}
    component = {"name": implied or getattr(GPTConfig(), slot).name, **settings}
    assert read_config({name: value}) == GPTConfig(**{slot: component})


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (dict(attention_type="flash_attention"), dict(attention="mha")),
        (dict(attention_type="linear_attention"), dict(attention="linear")),
        (dict(attention_type="local_window_attention"), dict(attention="swa")),
        (dict(attention_class="MultiHeadAttention"), dict(attention="mha")),
        (
            dict(attention_class="GroupedQueryAttention", num_kv_groups=4),
            dict(attention={"name": "gqa", "n_kv_heads": 4}),
        ),
        (dict(attention_class="MultiQueryAttention"), dict(attention="mqa")),
        (dict(attention_class="MultiHeadLatentAttention"), dict(attention="mla")),
        (dict(attention_class="SlidingWindowAttention"), dict(attention="swa")),
        (dict(ffn_type="ff_standard"), dict(ffn="mlp")),
        (dict(ffn_type="ff_swiglu"), dict(ffn="swiglu")),
        (dict(ffn_type="ff_moe"), dict(ffn="moe")),
        (dict(norm_type="RMSNorm"), dict(norm="rmsnorm")),
        (dict(norm_type="layer_norm"), dict(norm="layernorm")),
        (dict(norm_type="ScaleNorm"), dict(norm="scalenorm")),
        (dict(pos_type="rotary"), dict(pos="rope")),
        (dict(pos_type="sinusoidal"), dict(pos="sinusoidal")),
        (dict(pos_type="ALiBi"), dict(pos="alibi")),
        (dict(ffn_class="StandardFeedForward"), dict(ffn="mlp")),
        (dict(ffn_class="GatedFeedForward"), dict(ffn="swiglu")),
        (dict(ffn_class="GatedFeedForward", ffn_type="geglu"), dict(ffn="geglu")),
        (dict(ffn_class="MixtureOfExperts"), dict(ffn="moe")),
        (dict(norm_class="ScaleNorm"), dict(norm="scalenorm")),
        (dict(attention_type="multi_head"), dict(attention="mha")),
        (dict(attention_type="scaled_dot_product"), dict(attention="mha")),
        (dict(attention_type="causal"), dict(attention="mha")),
        (dict(attention="grouped_query"), dict(attention="gqa")),
        (dict(attention_type="multi_query"), dict(attention="mqa")),
        (dict(attention_type="sliding_window"), dict(attention="swa")),
        (dict(hidden_act="gelu_new"), dict(ffn={"name": "mlp", "activation": "gelu_tanh"})),
        (dict(hidden_act="silu", ffn="llama_mlp"), dict(ffn={"name": "swiglu", "activation": "silu"})),
        (dict(rms_norm_eps=0.1), dict(norm={"name": "rmsnorm", "eps": 0.1})),
        (dict(layer_norm_eps=0.1), dict(norm={"name": "layernorm", "eps": 0.1})),
        (dict(num_local_experts=4, num_experts_per_tok=1), dict(ffn={"name": "moe", "n_experts": 4, "top_k": 1})),
        (dict(attention={"name": "gqa", "num_key_value_heads": 4}), dict(attention={"name": "gqa", "n_kv_heads": 4})),
        (dict(d_ff=100), dict(ffn={"name": "mlp", "hidden": 100})),
        (dict(d_ff=100, ffn_type="ff_swiglu"), dict(ffn={"name": "swiglu", "hidden": 100})),
        (dict(qkv_bias=False), dict(attention={"name": "mha", "qkv_bias": False})),
        (dict(num_kv_groups=2), dict(attention={"name": "mha", "n_kv_heads": 2})),  # 2 key/value heads
        (dict(latent_dim=16), dict(attention={"name": "mla", "kv_lora_rank": 16})),
        (dict(latent_dim=None, num_kv_groups=None), dict()),
        (dict(sliding_window_size=9), dict(attention={"name": "mha", "window": 9})),
        (
            dict(sliding_window_size=9, attention_type="local_window_attention"),
            dict(attention={"name": "swa", "window": 9}),
        ),
        (
            dict(attention="mla", latent_dim=16, qkv_bias=True),
            dict(attention={"name": "mla", "kv_lora_rank": 16, "qkv_bias": True}),
        ),
        (dict(attention={"name": "gqa"}, num_kv_groups=1), dict(attention={"name": "gqa", "n_kv_heads": 1})),
        (dict(norm=RMSNorm.Config(eps=0.5)), dict(norm={"name": "rmsnorm", "eps": 0.5})),
        (
            dict(attention=MultiHeadLatentAttention.Config(kv_lora_rank=8)),
            dict(attention={"name": "mla", "kv_lora_rank": 8}),
        ),
    ],
    ids=lambda value: ",".join(f"{k}={v}"[:40] for k, v in value.items()),
)
def test_settings_of_components(foreign: dict, ours: dict) -> None:
    assert read_config(foreign) == GPTConfig(**ours)


def test_a_component_that_is_not_mentioned_stays_the_default() -> None:
    assert read_config(dict(latent_dim=16)).ffn == GPTConfig().ffn
    assert read_config() == read_config({}) == GPTConfig()


def test_a_dict_of_this_package_is_read_back() -> None:
    config = GPTConfig(attention="mla", layers={"variants": {"a": {"ffn": "moe"}}, "prefix": ["a"]})
    assert read_config(config.to_dict()) == config


def test_every_table_entry_is_valid() -> None:
    """Every target exists, every component is registered, and no setting of this package is treated as foreign."""
    for name, alias in MODEL_SETTINGS.items():
        assert name not in GPTConfig.__dataclass_fields__, name
        for target in alias.targets:
            slot, _, setting = target.partition(".")
            assert slot in GPTConfig.__dataclass_fields__, name
            if setting and setting != "name":
                able = [name for name, entry in entries(slot).items() if hasattr(entry.default(), setting)]
                assert able and (not alias.implies or alias.implies in able), name
    for slot, names in COMPONENTS.items():
        for foreign, ours in names.items():
            assert set(ours) <= set(entries(slot)) and foreign not in entries(slot), foreign
    assert set(WORDS) <= set(MODEL_SETTINGS) and set(NAMES) <= set(COMPONENTS)


def test_every_training_setting_is_valid() -> None:
    run = RunConfig()
    for name, alias in TRAINING_SETTINGS.items():
        for target in alias.targets:
            group, _, setting = target.partition(".")
            assert hasattr(run, group), name
            inside = (
                [entry.default() for entry in entries(group).values()] if group in RUN_SLOTS else [getattr(run, group)]
            )
            assert not setting or any(hasattr(config, setting) for config in inside), name
    assert SETTINGS.keys() == MODEL_SETTINGS.keys() | TRAINING_SETTINGS.keys()


def test_foreign_settings_inside_a_component() -> None:
    ours = decode("optim", {"name": "adamw_torch", "lr": 1e-3, "adam_beta2": 0.95})
    assert ours == decode("optim", {"name": "adamw", "learning_rate": 1e-3, "beta2": 0.95})
    with pytest.raises(ConfigError, match=r"lr=0.2 contradicts learning_rate=0.1: both set learning_rate"):
        decode("optim", {"name": "adamw", "learning_rate": 0.1, "lr": 0.2})
    with pytest.raises(ConfigError, match=r"set schedule.final instead; it is a fraction of the highest learning rate"):
        decode("schedule", {"name": "cosine", "min_lr": 1e-4})
    layers = {"variants": {"a": {"attention": {"sliding_window": 4}, "ffn": "ff_swiglu"}}, "prefix": ["a"]}
    first = GPTConfig(layers=layers).layer_configs[0]
    assert first.attention.window == 4 and first.ffn.name == "swiglu"


ATTENTIONS = {"flash_attention": "FlashAttention", "linear_attention": "LinearAttention",
              "local_window_attention": "LocalWindowAttention"}  # fmt: skip
FFNS = {"ff_standard": "StandardFeedForward", "ff_swiglu": "GatedFeedForward", "ff_moe": "MixtureOfExperts"}
NORMS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm", "scalenorm": "ScaleNorm"}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("norm", NORMS)
def test_types_and_classes_agree(attention: str, ffn: str, norm: str) -> None:
    sizes = dict(n_embd=32, num_heads=4, n_layers=1, vocab_size=50, block_size=16, dropout=0.1)
    types = dict(attention_type=attention, ffn_type=ffn, norm_type=norm)
    classes = dict(attention_class=ATTENTIONS[attention], ffn_class=FFNS[ffn], norm_class=NORMS[norm])
    both = GPTModel(SimpleNamespace(**sizes, **types, **classes))
    assert both.config == read_config(**sizes, **types)
    assert both.config == dataclasses.replace(read_config(**sizes, **classes), pos="sinusoidal")
    assert both(torch.randint(0, 50, (1, 10))).shape == (1, 10, 50)
    assert both.get_num_params() == both.num_parameters().total == both.get_num_params(non_embedding=True)


def test_the_number_of_parameters_by_methods_of_other_code_bases() -> None:
    model = GPTModel(n_embd=32, n_head=4, n_layer=1, vocab_size=50, block_size=16)  # learned positions
    assert model.get_num_params() == sum(parameter.numel() for parameter in model.parameters())
    assert model.get_num_params(non_embedding=True) == model.get_num_params() - 16 * 32


@pytest.mark.parametrize(
    ("slot", "table"), [("attention", ATTENTIONS), ("ffn", FFNS), ("norm", NORMS)], ids=["attention", "ffn", "norm"]
)
def test_a_type_and_a_class_of_different_components_are_refused(slot: str, table: dict) -> None:
    for name, other in itertools.product(table, table):
        foreign = {f"{slot}_type": name, f"{slot}_class": table[other]}
        if name != other:
            with pytest.raises(ConfigError, match=f"{slot}_class='.*' contradicts {slot}_type='{name}': both choose"):
                read_config(foreign)


def test_settings_may_agree_and_must_not_contradict() -> None:
    assert read_config(n_embd=32, d_model=32).d_model == 32
    for foreign in (
        dict(n_embd=32, d_model=64),
        dict(block_size=32, max_seq_length=64),
        dict(attention={"name": "gqa", "n_kv_heads": 2}, num_kv_groups=4),
        dict(attention="gqa", attention_type="linear"),
    ):
        with pytest.raises(ConfigError, match=r"contradicts .*: both (set|choose) ") as error:
            read_config(foreign)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("foreign", "sentence"),
    [
        (dict(n_embed=32), "no setting 'n_embed'; did you mean 'n_embd'?"),
        (dict(n_layerss=2), "no setting 'n_layerss'; did you mean 'n_layers'?"),
        (dict(contxt_length=2), "did you mean 'context_length'?"),
        (dict(attention="mhaa"), "no attention 'mhaa'; did you mean 'mha'?"),
        (dict(attention_type="flash"), "no attention 'flash'"),
        (dict(ffn_type="ff_swigloo"), "no ffn 'ff_swigloo'"),
        (dict(pos="ropee"), "no pos 'ropee'; did you mean 'rope'?"),
        (dict(n_embd="32"), "model.d_model must be a whole number, got '32'"),
        (dict(num_kv_groups="2"), "attention.n_kv_heads must be a whole number or null, got '2'"),
        (dict(num_attention_head=4), "did you mean 'num_attention_heads'?"),
        (dict(num_atention_layers=4), "no setting 'num_atention_layers'; there are: "),
        (dict(head_bais=True), "did you mean 'head_bias'?"),
        (dict(resid_pdrop=0.1), "resid_pdrop is not converted: set dropout instead; one value is for"),
        (dict(partial_rotary_factor=0.5), "set pos.rotary_dim instead"),
        (dict(max_iters=5), "max_iters is a setting of a training (trainer.max_steps), not of a model"),
        (dict(latent_dim=8, attention="gqa"), "no setting latent_dim (kv_lora_rank); use it with mla"),
        (dict(attention=3), "attention must be a name, or a mapping with a name, got 3"),
        (dict(attention=None), "attention must be a name, or a mapping with a name, got None"),
        (dict(attention=RMSNorm.Config()), "attention cannot be a RMSNorm.Config"),
    ],
    ids=str,
)
def test_unknown_settings(foreign: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        GPTModel(foreign)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_invalid_descriptions_are_refused() -> None:
    for wrong in (3, "gpt2", [1, 2], object):
        with pytest.raises(ConfigError, match="a GPTConfig, a dict, a SimpleNamespace or keywords"):
            GPTModel(wrong)
    with pytest.raises(ConfigError, match=r"either a GPTConfig or keywords, not both \(d_model\)"):
        GPTModel(SMALL, d_model=64)
