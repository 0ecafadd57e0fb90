"""Families that the command line composes have the default settings and the logits of ``transformers``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from modular_gpt import GPTModel, compose
from modular_gpt.cli.composition.conf_dir import conf_dir
from modular_gpt.cli.composition.families import FAMILY, family_content, family_files
from modular_gpt.model.config import GPTConfig
from modular_gpt.model.differences import differences
from modular_gpt.pretrained import FAMILIES, save_pretrained
from tests.reference.cases import ids
from tests.reference.conftest import Parity

CONTENT = {name: family_content(path)[FAMILY] for name, path in family_files([conf_dir()]).items()}
TYPES = {name: content["model_type"] for name, content in CONTENT.items() if "model_type" in content}
SMALL = ("model_size.d_model=64", "model_size.n_heads=8", "model_size.n_layers=6", "model_size.context_length=64")
# keys of a config.json that are sizes; all others must have the defaults of transformers
SIZES = {
    *("vocab_size", "hidden_size", "n_embd", "intermediate_size", "n_inner", "moe_intermediate_size"),
    *("num_hidden_layers", "n_layer", "num_attention_heads", "n_head", "num_key_value_heads", "head_dim"),
    *("query_pre_attn_scalar", "max_position_embeddings", "n_positions", "original_max_position_embeddings"),
    *("seq_length", "sliding_window", "num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"),
    *("n_group", "topk_group", "first_k_dense_replace", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim"),
    *("qk_rope_head_dim", "v_head_dim"),
}
# gpt-oss was trained up to 4,096 tokens; the RoPE scaling in its published config extends that length afterwards
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"rope_parameters": {"rope_type": "default", "rope_theta": 150000.0}}
}


def composed(name: str) -> GPTConfig:
    return GPTConfig.from_dict({**compose(f"family={name}", *SMALL).model.to_dict(), "vocab_size": 61})


def save_composed(name: str, folder: Path) -> tuple[GPTModel, dict[str, Any]]:
    """Save the composed model with large weights as its model type; return it and the content of its config.json."""
    torch.manual_seed(0)
    model = GPTModel(composed(name)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(model, folder, model_type=TYPES[name])
    written: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return model, written


def test_at_least_sixteen_families_are_of_published_types() -> None:
    assert len(TYPES) >= 16 and set(TYPES.values()) <= set(FAMILIES)


@pytest.mark.parametrize("name", TYPES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path, parity: Parity) -> None:
    model, _ = save_composed(name, tmp_path)
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = ids(61, 48)
    with torch.no_grad():
        parity(f"family={name}", model(tokens), hf_model(tokens).logits)


@pytest.mark.parametrize("name", TYPES)
def test_settings_are_the_defaults_of_transformers(name: str, tmp_path: Path) -> None:
    """Apart from sizes, the yaml file has the settings of a config that transformers builds from the sizes alone."""
    _, written = save_composed(name, tmp_path)
    sizes = {key: value for key, value in written.items() if key in SIZES}
    assert sizes.get("query_pre_attn_scalar") in (None, sizes.get("head_dim"))
    config_class = type(transformers.AutoConfig.from_pretrained(tmp_path))
    default = config_class(**sizes, **EXCEPTIONS.get(name, {})).to_dict()
    expected, config = FAMILIES[TYPES[name]].config(default), composed(name)
    assert [*differences(expected, config), *differences(config, expected)] == []


def test_a_differing_setting_is_named(tmp_path: Path) -> None:
    """The comparison above detects one changed setting."""
    _, written = save_composed("qwen3", tmp_path)
    changed = FAMILIES["qwen3"].config({**written, "hidden_act": "gelu"})
    assert list(differences(changed, composed("qwen3"))) == ["ffn.activation=gelu"]


LFM2 = {  # our name -> name in transformers, by the first match
    "embedding.": "model.embed_tokens.",
    "final_norm.": "model.embedding_norm.",
    "attention.out.": "self_attn.out_proj.",
    "attention.query.": "self_attn.q_proj.",
    "attention.key.": "self_attn.k_proj.",
    "attention.value.": "self_attn.v_proj.",
    "attention.query_norm.": "self_attn.q_layernorm.",
    "attention.key_norm.": "self_attn.k_layernorm.",
    "attention_norm.": "operator_norm.",
    "ffn_norm.": "ffn_norm.",
    "ffn.gate.": "feed_forward.w1.",
    "ffn.up.": "feed_forward.w3.",
    "ffn.down.": "feed_forward.w2.",
}


def to_lfm2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state dict by their names in transformers."""
    tensors = {}
    for name in state:
        start = name.removesuffix("attention.input_gate.weight")
        if start != name:
            conv = f"model.layers.{start.removeprefix('blocks.')}conv"
            gates = [state[f"{start}attention.{gate}.weight"] for gate in ("input_gate", "output_gate", "value")]
            tensors[f"{conv}.in_proj.weight"] = torch.cat(gates)
            tensors[f"{conv}.conv.weight"] = state[f"{start}attention.conv.weight"].unsqueeze(1)
            tensors[f"{conv}.out_proj.weight"] = state[f"{start}attention.out.weight"]
    convolved = {name.split(".conv.")[0].rpartition("layers.")[2] for name in tensors}
    for name, tensor in state.items():
        if name.startswith("blocks.") and name.split(".")[1] in convolved and ".attention." in name:
            continue
        old, new = next(pair for pair in LFM2.items() if pair[0] in name)
        tensors[name.replace(old, new).replace("blocks.", "model.layers.")] = tensor
    return tensors


def test_lfm2_equals_transformers(parity: Parity) -> None:
    """``modular_gpt.pretrained`` has no mapping for LFM2, so the test renames its tensors."""
    config = composed("lfm2")
    torch.manual_seed(0)
    model = GPTModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    layers = config.layer_configs
    sizes = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8}
    hf_config = transformers.Lfm2Config(
        **sizes,
        num_key_value_heads=config.attention.n_kv_heads,
        intermediate_size=layers[0].ffn.hidden,
        block_auto_adjust_ff_dim=False,
        layer_types=["full_attention" if layer.attention.name == "gqa" else "conv" for layer in layers],
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    hf_model = transformers.Lfm2ForCausalLM(hf_config).eval()
    missing, unexpected = hf_model.load_state_dict(to_lfm2(model.state_dict()), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embeddings
    tokens = ids(61, 48)
    with torch.no_grad():
        parity("family=lfm2", model(tokens), hf_model(tokens).logits)
