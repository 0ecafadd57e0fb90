"""Keys of a config.json: those that matter are read, defaults are those of transformers, others are refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modular_gpt import CheckpointError, GPTConfig
from modular_gpt.core.errors import UserError
from modular_gpt.mapping.hf_config import HARMLESS
from modular_gpt.model.config import SLOTS
from modular_gpt.model.differences import differences
from modular_gpt.pretrained import FAMILIES
from modular_gpt.pretrained.family import Family
from modular_gpt.pretrained.load import read_config
from modular_gpt.weights.hub import locate
from tests.reference.cases import BLOOM, GPT2, LATENT, MPT, SIZES, YARN

# keys of transformers that do not change the logits: names, tokens, outputs, other tasks, training
INERT = {
    "transformers_version", "architectures", "model_type", "_name_or_path", "dtype", "is_encoder_decoder",
    "output_hidden_states", "output_attentions", "return_dict", "use_cache", "chunk_size_feed_forward",
    "id2label", "label2id", "problem_type", "bos_token_id", "eos_token_id", "pad_token_id",
    "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    "output_router_logits",  # adds the loss that router_aux_loss_coef weighs
}  # fmt: skip
# keys that a family's config in transformers has, but its code does not use, or that repeat another key
UNUSED = {
    "falcon": {"num_kv_heads", "num_ln_in_parallel_attn"},  # used only with new_decoder_architecture
    "gpt2": {"reorder_and_upcast_attn"},  # the order of two multiplications
    "llama": {"pretraining_tp"},
    "mixtral": {"router_jitter_noise"},  # noise in training
    "deepseek_v2": {"pretraining_tp", "head_dim", "qk_head_dim"},
    "deepseek_v3": {"pretraining_tp", "head_dim", "qk_head_dim", "num_nextn_predict_layers"},
    "qwen2": {"max_window_layers"},  # repeats layer_types, where that is written
    "qwen3": {"max_window_layers"},
    "bloom": {"pretraining_tp", "slow_but_exact"},
    "mpt": {"expansion_ratio", "resid_pdrop", "emb_pdrop", "learned_pos_emb", "init_device", "embedding_fraction",
            "norm_type"},
}  # fmt: skip
# keys without a default in transformers, or with one that its rotary embedding does not accept
NEEDED = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"num_experts_per_tok": 6, "n_routed_experts": 8, "n_shared_experts": 1},
    "glm4_moe": {"head_dim": 128},
}
# keys that repeat others
REPEATED = {"max_window_layers", "_sliding_window_pattern", "attention_layers", "no_rope_layer_interval"}
# keys that enable others
SWITCHED_ON = {
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "deepseek_v2": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
}
SMALL = {"gpt2": GPT2, "bloom": BLOOM, "mpt": MPT, "deepseek_v2": LATENT, "deepseek_v3": LATENT}


def written_by_transformers(model_type: str, **settings: Any) -> dict[str, Any]:
    """Return the content of the config.json that transformers writes for a model with these settings."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **{**NEEDED.get(model_type, {}), **settings})
    return json.loads(config.to_json_string(use_diff=False))


def config_of(family: Family, settings: Mapping[str, Any]) -> GPTConfig:
    """Read the settings of a config.json."""
    return family.config(settings)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    family = FAMILIES[model_type]
    missing, written = (
        config_of(family, NEEDED.get(model_type, {})),
        config_of(family, written_by_transformers(model_type)),
    )
    assert not list(differences(missing, written)), "up to rounding errors of scales"
    assert {**missing.to_dict(), **dict.fromkeys(SLOTS)} == {**written.to_dict(), **dict.fromkeys(SLOTS)}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_that_matters_is_read(model_type: str) -> None:
    settings = written_by_transformers(model_type, **{**NEEDED.get(model_type, {}), **SWITCHED_ON.get(model_type, {})})
    harmless = {*HARMLESS, *FAMILIES[model_type].harmless, *REPEATED}
    relevant = set(settings) - INERT - UNUSED.get(model_type, set()) - harmless
    before = config_of(FAMILIES[model_type], settings)
    unread = {key for key in relevant if not _is_read(FAMILIES[model_type], settings, key, before)}
    assert not unread


def _is_read(family: Family, settings: Mapping[str, Any], key: str, before: GPTConfig) -> bool:
    """Return whether an unusual value of the key changes the config or raises an error."""
    for strange in (None, not settings[key], 7, 0.31, "strange", {"rope_type": "strange", "alibi": False}):
        try:
            if config_of(family, {**settings, key: strange}) != before:
                return True
        except (UserError, TypeError, AttributeError, ZeroDivisionError, KeyError):
            return True
    return False


def test_former_keys_of_rotary_settings_are_read() -> None:
    """Older config.json files have ``rope_theta`` and ``rope_scaling`` in place of ``rope_parameters``."""
    for model_type in ("llama", "qwen2"):
        family = FAMILIES[model_type]
        old = {key: value for key, value in SIZES.items()}
        new = {**old, "rope_parameters": YARN}
        scaling = {key: value for key, value in YARN.items() if key not in ("rope_theta", "rope_type")}
        old |= {"rope_theta": YARN["rope_theta"], "rope_scaling": {"type": "yarn", **scaling}}
        assert config_of(family, old) == config_of(family, new)
        assert config_of(family, {**SIZES, "rope_theta": 5e5, "rope_scaling": None}).pos.theta == 5e5


def test_a_missing_yarn_factor_is_the_ratio_of_the_lengths() -> None:
    settings = {**SIZES, "rope_parameters": {**YARN, "factor": None}}
    assert config_of(FAMILIES["llama"], settings).pos.scaling["factor"] == 64 / 16


def test_windows_follow_from_older_keys() -> None:
    """Older config.json files have no ``layer_types``."""
    qwen = {**SIZES, "sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}
    windows = [layer.attention.window for layer in config_of(FAMILIES["qwen2"], qwen).layer_configs]
    assert windows == [None, None, 5]
    windows = [
        layer.attention.window for layer in config_of(FAMILIES["gemma2"], {**SIZES, "sliding_window": 5}).layer_configs
    ]
    assert windows == [5, None, 5]
    unused = config_of(FAMILIES["qwen3_moe"], {**SIZES, "sliding_window": 5, "use_sliding_window": False})
    assert unused.attention.window is None
    all_windowed = config_of(FAMILIES["gemma2"], {**SIZES, "layer_types": ["sliding_attention"] * 3})
    assert all_windowed.attention.window == 4096 and all_windowed.layers.name == "uniform"


REFUSED = [
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"activation_function": "gelu_neww"}, "did you mean 'gelu_new'"),
    ("llama", {"rope_parameters": {"rope_type": "longer", "rope_theta": 1e4}}, "rope scaling 'longer'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "short_factors needs a positive"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
    ("llama", {"hidden_size": "wide"}, "wrong type"),
    ("llama", {"num_attention_heads": 0}, "wrong type or size"),
    ("llama", {"vocab_size": 1.5}, "model.vocab_size must be a whole number"),
    ("llama", {"num_key_value_heads": 3}, "does not divide"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
    ("qwen2", {"layer_types": ["linear_attention"] * 3}, "layer type 'linear_attention'"),
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob"),
    ("deepseek_v2", {"mlp_bias": True}, "mlp_bias"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method"),
    ("deepseek_v2", {"num_experts_per_tok": ...}, "lacks the setting 'num_experts_per_tok'"),
    ("deepseek_v3", {"num_key_value_heads": 2}, "fewer key/value heads"),
    ("deepseek_v3", {"attention_bias": True, "q_lora_rank": None}, "without q_lora_rank"),
    ("mpt", {"no_bias": False}, "no_bias"),
    ("mpt", {"logit_scale": 2.0}, "logit_scale"),
    ("mpt", {"attn_config": {"alibi": False}}, "alibi"),
    ("mpt", {"attn_config": {"qk_ln": True}}, "qk_ln"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gpt_oss", {"swiglu_limit": -5.0}, "clamp_limit"),
    ("hy_v3", {"mlp_layer_types": ["dense", "thick", "sparse"]}, "layer type 'thick'"),
    ("llama4_text", {"attn_scale": None, "num_hidden_layers": 4}, "wrong type"),
]


@pytest.mark.parametrize(("model_type", "change", "message"), REFUSED)
def test_unsupported_values_are_refused(model_type: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = {"model_type": model_type, **SMALL.get(model_type, SIZES), **change}
    content = {key: value for key, value in settings.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refusal:
        read_config(locate(tmp_path))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_dropout_rate_without_counterpart_warns(recwarn: pytest.WarningsRecorder) -> None:
    """``dropout`` is one rate for embeddings and residual branches; a config.json may have two."""
    config_of(FAMILIES["gpt2"], GPT2)
    assert not recwarn
    with pytest.warns(UserWarning, match="embd_pdrop=0.3"):
        config = config_of(FAMILIES["gpt2"], {**GPT2, "embd_pdrop": 0.3})
    assert config.dropout == 0.1
    with pytest.warns(UserWarning, match="hidden_dropout=0.2"):
        config_of(FAMILIES["bloom"], {**BLOOM, "hidden_dropout": 0.2})


def test_an_unknown_model_type_lists_the_known_ones(tmp_path: Path) -> None:
    for content, message in (({"model_type": "lama"}, "did you mean 'llama'"), ({"hidden_size": 3}, "no model_type")):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError) as refusal:
            read_config(locate(tmp_path))
        assert message in str(refusal.value) and all(model_type in str(refusal.value) for model_type in FAMILIES)


def test_the_config_of_a_checkpoint_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPTConfig().to_dict()))
    with pytest.raises(CheckpointError, match="a checkpoint of this program"):
        read_config(locate(tmp_path))
