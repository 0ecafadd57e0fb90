"""The words of five code bases, and the four ways to hand them over."""

from types import SimpleNamespace

import pytest

from modular_gpt import ConfigError, GPTConfig, GPTModel
from modular_gpt.model.aliases import NAMES, WORDS, read_config
from modular_gpt.nn.attention.mla import MultiHeadLatentAttention
from modular_gpt.nn.norm.rmsnorm import RMSNorm

SMALL = GPTConfig(pos="learned", vocab_size=31, d_model=32, n_heads=4, n_layers=2, context_length=24, dropout=0.1)


@pytest.mark.parametrize(
    "words",
    [
        dict(vocab_size=31, n_embd=32, num_heads=4, num_layers=2, block_size=24, dropout=0.1),
        dict(vocab_size=31, n_embd=32, n_head=4, n_layer=2, block_size=24, dropout=0.1),
        dict(vocab_size=31, emb_dim=32, n_heads=4, n_layers=2, context_length=24, drop_rate=0.1),
        dict(vocab_size=31, d_model=32, num_heads=4, num_layers=2, max_seq_length=24, dropout=0.1),
        dict(vocab_size=31, embedding_dimension=32, num_heads=4, num_layers=2, context_length=24, dropout_rate=0.1),
    ],
    ids=["block_size", "n_layer", "emb_dim", "max_seq_length", "embedding_dimension"],
)
def test_the_same_model_in_five_vocabularies(words: dict) -> None:
    assert read_config(words) == SMALL
    assert read_config(SimpleNamespace(**words)) == SMALL
    assert read_config(**words) == SMALL
    assert GPTModel(words).config == GPTModel(SimpleNamespace(**words)).config == GPTModel(**words).config == SMALL
    assert GPTModel(SMALL).config is SMALL


@pytest.mark.parametrize(
    ("words", "ours"),
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
    ids=lambda words: ",".join(f"{k}={v}"[:40] for k, v in words.items()),
)
def test_words_for_parts(words: dict, ours: dict) -> None:
    positions = {"pos": "learned"} if WORDS.keys() & words.keys() else {}  # as in GPT-2, unless they say otherwise
    assert read_config(words) == GPTConfig(**{**positions, **ours})


def test_a_part_that_was_not_mentioned_stays_the_default() -> None:
    assert read_config(dict(latent_dim=16)).ffn == GPTConfig().ffn
    assert read_config() == read_config({}) == GPTConfig()


def test_our_own_dict_is_read_back() -> None:
    config = GPTConfig(attention="mla", layers={"variants": {"a": {"ffn": "moe"}}, "prefix": ["a"]})
    assert read_config(config.to_dict()) == config


def test_every_word_leads_somewhere() -> None:
    config = GPTConfig()
    for word, target in WORDS.items():
        slot, _, setting = target.partition(".")
        assert hasattr(config, slot), word
        names = {"attention": ["mha", "mla"], "ffn": ["mlp", "swiglu"]}.get(slot, [getattr(config, slot)])
        if setting and setting != "name":
            assert any(hasattr(getattr(GPTConfig(**{slot: name}), slot), setting) for name in names), word
    for slot, names in NAMES.items():
        for name in names.values():
            GPTConfig(**{slot: name})


def test_words_may_agree_and_must_not_contradict() -> None:
    assert read_config(n_embd=32, d_model=32).d_model == 32
    for words in (
        dict(n_embd=32, d_model=64),
        dict(block_size=32, max_seq_length=64),
        dict(attention={"name": "gqa", "n_kv_heads": 2}, num_kv_groups=4),
        dict(attention="gqa", attention_type="linear"),
    ):
        with pytest.raises(ConfigError, match="contradicts another word for") as error:
            read_config(words)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
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
        (dict(latent_dim=8, attention="gqa"), "no setting 'kv_lora_rank'"),
        (dict(attention=3), "attention must be a name, or a mapping with a name, got 3"),
        (dict(attention=None), "attention must be a name, or a mapping with a name, got None"),
        (dict(attention=RMSNorm.Config()), "attention cannot be a RMSNorm.Config"),
    ],
    ids=str,
)
def test_unknown_words(words: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        GPTModel(words)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_description() -> None:
    for wrong in (3, "gpt2", [1, 2], object):
        with pytest.raises(ConfigError, match="a GPTConfig, a dict, a SimpleNamespace or keywords"):
            GPTModel(wrong)
    with pytest.raises(ConfigError, match=r"either a GPTConfig or keywords, not both \(d_model\)"):
        GPTModel(SMALL, d_model=64)
