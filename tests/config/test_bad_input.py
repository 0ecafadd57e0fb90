"""Invalid settings are refused when the config is read, in one sentence with the remedy."""

import pytest
import torch

from modular_gpt import ConfigError, GPTConfig, GPTModel
from tests.components.cases import MODEL

MHA, MLA, MOE = {"name": "mha"}, {"name": "mla"}, {"name": "moe"}
ROPE = {"name": "rope"}

# (settings, the whole sentence or an excerpt of it)
TABLE = [
    # dimensions
    (dict(vocab_size=0), "model.vocab_size must be above 0, got 0"),
    (dict(d_model=-8), "model.d_model must be above 0, got -8"),
    (dict(n_heads=0), "model.n_heads must be above 0, got 0"),
    (dict(n_layers=0), "model.n_layers must be above 0, got 0"),
    (dict(context_length=0), "model.context_length must be above 0, got 0"),
    (dict(d_model=32.0), "model.d_model must be a whole number, got 32.0"),
    (dict(d_model="32"), "model.d_model must be a whole number, got '32'"),
    (dict(d_model=True), "model.d_model must be a whole number, got True"),
    (dict(bias="yes"), "model.bias must be true or false, got 'yes'"),
    (dict(dropout="a"), "model.dropout must be a number, got 'a'"),
    (dict(dropout=1.0), "model.dropout must lie in [0, 1), got 1.0"),
    (dict(dropout=-0.1), "model.dropout must lie in [0, 1), got -0.1"),
    (dict(dropout=float("nan")), ", got nan"),
    (dict(residual_multiplier=float("inf")), "model.residual_multiplier must be a finite number, got inf"),
    (dict(init_std=-0.02), "model.init_std must be above 0, got -0.02"),
    (dict(logit_softcap=0.0), "model.logit_softcap must be above 0, got 0.0"),
    (dict(final_norm="no"), "model.final_norm must be true or false or null, got 'no'"),
    (dict(topology="prenorm"), "topology: no choice 'prenorm'; did you mean 'pre'?"),
    (dict(init="kaiming"), "init: no choice 'kaiming'; there are: fan_in, normal, orthogonal, xavier"),
    (dict(init_residual="none"), "init_residual: no choice 'none'; there are: plain, scaled, zero"),
    (dict(init_head="none", tie_embeddings=False), "init_head: no choice 'none'; there are: matrix, zero"),
    (dict(init_head="zero"), "init_head=zero needs a head that is not the embedding matrix; set tie_embeddings=false"),
    (dict(layers="uniform"), "layers must be a mapping with variants, prefix, cycle and suffix, got 'uniform'"),
    # names
    (dict(attention="mhaa"), "no attention 'mhaa'; did you mean 'mha'? there are: "),
    (dict(ffn="swiglue"), "no ffn 'swiglue'; did you mean 'swiglu'?"),
    (dict(norm="rns"), "there are: layernorm, rmsnorm, scalenorm"),
    (dict(pos="rop"), "no pos 'rop'; did you mean 'rope'?"),
    (dict(attention={"name": "gqa", "n_kv_headz": 2}), "no setting 'n_kv_headz'; did you mean 'n_kv_heads'?"),
    (dict(attention={"n_kv_heads": 2}), "attention must be a name, or a mapping with a name, got {'n_kv_heads': 2}"),
    (dict(attention=["mha"]), "attention must be a name, or a mapping with a name, got ['mha']"),
    (dict(ffn=None), "ffn must be a name, or a mapping with a name, got None"),
    # attention
    (dict(d_model=30), "d_model=30 does not divide into n_heads=4; change one, or set attention.head_dim"),
    (dict(d_model=30, attention="linear"), "d_model=30 does not divide into n_heads=4"),
    (dict(d_model=30, attention="mla"), "set attention.qk_nope_head_dim and attention.v_head_dim"),
    (
        dict(attention={"name": "gqa", "n_kv_heads": 3}),
        "n_heads=4 does not divide into attention.n_kv_heads=3; choose one of 1, 2, 4",
    ),
    (dict(attention={"name": "gqa", "n_kv_heads": 8}), "choose one of 1, 2, 4"),
    (dict(attention={**MHA, "n_kv_heads": 0}), "attention.n_kv_heads must be above 0, got 0"),
    (dict(attention={**MHA, "n_kv_heads": "2"}), "attention.n_kv_heads must be a whole number or null, got '2'"),
    (dict(attention={**MHA, "sinks": 1}), "attention.sinks must be true or false, got 1"),
    (dict(attention={**MHA, "head_dim": 0}), "attention.head_dim must be above 0, got 0"),
    (dict(attention={"name": "swa", "window": 0}), "attention.window must be above 0, got 0"),
    (dict(attention={**MLA, "window": -1}), "attention.window must be above 0, got -1"),
    (dict(attention={**MHA, "softcap": 0.0}), "attention.softcap must be above 0, got 0.0"),
    (dict(attention={**MHA, "clip_qkv": -1.0}), "attention.clip_qkv must be above 0, got -1.0"),
    (dict(attention={**MHA, "dropout": 1.5}), "attention.dropout must lie in [0, 1), got 1.5"),
    (dict(attention={**MLA, "dropout": -1.0}), "attention.dropout must lie in [0, 1), got -1.0"),
    (
        dict(attention={**MHA, "backend": "flash", "softcap": 5.0}),
        "backend=flash has no softcap; use auto, math or flex",
    ),
    (
        dict(attention={**MLA, "backend": "flash", "softcap": 5.0}),
        "backend=flash has no softcap; use auto, math or flex",
    ),
    (dict(attention={**MHA, "backend": "flsh"}), "attention.backend: no choice 'flsh'; did you mean 'flash'?"),
    (dict(attention={**MHA, "qk_norm": "rms_nrm"}), "no norm 'rms_nrm'; did you mean 'rmsnorm'?"),
    (dict(attention={**MHA, "qk_norm_scope": "all"}), "attention.qk_norm_scope: no choice 'all'"),
    (
        dict(attention={**MHA, "qk_norm": "rmsnorm", "qk_norm_scope": "full", "qk_norm_after_rope": True}),
        "it does not go with qk_norm_scope=full",
    ),
    (dict(attention={**MLA, "kv_lora_rank": 0}), "attention.kv_lora_rank must be above 0, got 0"),
    (dict(attention={**MLA, "q_lora_rank": 0}), "attention.q_lora_rank must be above 0, got 0"),
    (dict(attention="mla", d_model=4, n_heads=2), "leaves no latent of d_model / 8; set attention.kv_lora_rank"),
    (dict(attention={**MLA, "qk_rope_head_dim": 3}), "attention.qk_rope_head_dim must be even"),
    (dict(attention={**MLA, "qk_rope_head_dim": 0}), "above 0 where the position rotates, got 0"),
    (dict(attention={**MLA, "latent_norm": "batchnorm"}), "no norm 'batchnorm'"),
    (dict(attention={"name": "linear", "chunk": 0}), "attention.chunk must be above 0, got 0"),
    (dict(attention={"name": "linear", "window": 5}), "attention=linear has no setting 'window'; use it with"),
    (dict(attention="linear", pos="alibi"), "attention=linear has no score matrix"),
    (dict(attention="linear", pos="alibi"), "use pos=rope, learned, sinusoidal or none"),
    # positions
    (dict(d_model=36), "pos=rope rotates pairs of dimensions: 9 is odd; set an even pos.rotary_dim"),
    (dict(pos={**ROPE, "rotary_dim": 3}), "3 is odd; set an even pos.rotary_dim"),
    (dict(pos={**ROPE, "rotary_dim": 10}), "pos.rotary_dim=10 is wider than the 8 dimensions of a head"),
    (dict(pos={**ROPE, "theta": 0}), "pos.theta must be above 0, got 0"),
    (dict(pos={**ROPE, "layout": "pairs"}), "pos.layout: no choice 'pairs'; there are: half, interleaved"),
    (dict(pos={**ROPE, "scaling": {"kind": "ntk"}}), "pos.scaling.kind: no choice 'ntk'; there are:"),
    (
        dict(pos={**ROPE, "scaling": {"kind": "yarn", "factr": 2.0}}),
        "pos.scaling: no setting 'factr'; did you mean 'factor'?",
    ),
    (dict(pos={**ROPE, "scaling": {"factor": 0.0}}), "pos.scaling.factor must be above 0, got 0.0"),
    (dict(pos={**ROPE, "scaling": {"factor": "2"}}), "pos.scaling.factor must be a number, got '2'"),
    (
        dict(pos={**ROPE, "scaling": {"kind": "dynamic"}, "rotary_dim": 2}),
        "needs more than one pair of rotated dimensions",
    ),
    (
        dict(pos={**ROPE, "scaling": {"kind": "llama3", "low_frequency_factor": 4.0}}),
        "must be below high_frequency_factor=4.0",
    ),
    (dict(pos={"name": "sinusoidal", "theta": 0.0}), "pos.theta must be above 0, got 0.0"),
    (dict(pos="sinusoidal", d_model=33, n_heads=3), "d_model must be even, got 33"),
    (dict(pos={"name": "alibi", "max_bias": 0.0}), "pos.max_bias must be above 0, got 0.0"),
    # feed-forward
    (dict(ffn={"name": "mlp", "hidden": 0}), "ffn.hidden must be above 0, got 0"),
    (dict(ffn={"name": "mlp", "activation": "swash"}), "ffn.activation: no choice 'swash'"),
    (dict(ffn={"name": "mlp", "activation": "clamped_swish"}), "ffn.activation: no choice 'clamped_swish'"),
    (dict(ffn={"name": "swiglu", "activation": "silux"}), "did you mean 'silu'?"),
    (dict(ffn={**MOE, "n_experts": 0}), "ffn.n_experts must be above 0, got 0"),
    (dict(ffn={**MOE, "top_k": 9}), "ffn.top_k=9 is more than the 8 experts a token can choose from"),
    (dict(ffn={**MOE, "top_k": 3, "groups": 4}), "ffn.top_k=3 is more than the 2 experts a token can choose from"),
    (dict(ffn={**MOE, "top_k": 0}), "ffn.top_k must be above 0, got 0"),
    (dict(ffn={**MOE, "groups": 3}), "ffn.groups=3 must divide n_experts=8"),
    (dict(ffn={**MOE, "groups": 2, "top_groups": 3}), "top_groups=3 lie between 1 and groups"),
    (dict(ffn={**MOE, "shared_experts": -1}), "ffn.shared_experts must be 0 or more, got -1"),
    (dict(ffn={**MOE, "expert": "linear"}), "ffn.expert: no choice 'linear'; there are: glu, mlp"),
    (dict(ffn={**MOE, "expert": "mlp", "activation": "clamped_swish"}), "ffn.activation: no choice 'clamped_swish'"),
    (dict(ffn={**MOE, "score": "relu"}), "ffn.score: no choice 'relu'; there are: sigmoid, softmax"),
    (dict(ffn={**MOE, "balance": "biases"}), "ffn.balance: no choice 'biases'; did you mean 'bias'?"),
    (
        dict(norm={"name": "rmsnorm", "bias": True}),
        "norm=rmsnorm has no setting 'bias'; use it with layernorm",
    ),
    (dict(norm={"name": "layernorm", "eps": "small"}), "norm.eps must be a number, got 'small'"),
]

# rows about a single component
IN_PARTS = [
    (settings, sentence)
    for settings, sentence in TABLE
    if len(settings) == 1 and any(isinstance(value, dict) and "name" in value for value in settings.values())
]


@pytest.mark.parametrize(("settings", "sentence"), TABLE, ids=[str(settings)[:70] for settings, _ in TABLE])
def test_refused_when_the_config_is_read(settings: dict, sentence: str) -> None:
    for read in (lambda: GPTConfig(**{**MODEL, **settings}), lambda: GPTConfig.from_dict({**MODEL, **settings})):
        with pytest.raises(ConfigError) as error:
            read()
        assert sentence in str(error.value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(("settings", "sentence"), IN_PARTS, ids=[str(settings)[:70] for settings, _ in IN_PARTS])
def test_also_refused_in_a_layer_variant(settings: dict, sentence: str) -> None:
    """A layer variant with an invalid component is refused too."""
    with pytest.raises(ConfigError) as error:
        GPTConfig(**MODEL, layers={"variants": {"odd": settings}, "suffix": ["odd"]})
    assert sentence in str(error.value)


def test_from_dict_names_the_closest_setting() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'n_hedas'; did you mean 'n_heads'\?"):
        GPTConfig.from_dict({"n_hedas": 2})
    with pytest.raises(ConfigError, match=r"no setting 'n_hedas'; did you mean 'n_heads'\?"):
        GPTModel(n_hedas=2)


def test_a_learned_position_cannot_be_set_per_layer() -> None:
    with pytest.raises(ConfigError, match="cannot be set per layer; set it as pos"):
        GPTConfig(**MODEL, layers={"variants": {"a": {"pos": "sinusoidal"}}, "prefix": ["a"]})


def test_a_text_longer_than_a_learned_table() -> None:
    model = GPTModel(**{**MODEL, "pos": "learned"})
    with pytest.raises(ConfigError) as error:
        model(torch.zeros(1, 25, dtype=torch.long))
    assert "25 tokens do not fit pos=learned, which has 24 positions" in str(error.value)
    assert "use pos=rope or pos=alibi" in str(error.value)


@pytest.mark.parametrize("pos", ["rope", "alibi", "none", "sinusoidal"])
def test_other_positions_extend_past_the_context(pos: str) -> None:
    logits = GPTModel(**{**MODEL, "pos": pos})(torch.zeros(1, 60, dtype=torch.long))
    assert logits.isfinite().all()
