"""Shared by the families similar to Llama: tensor names, settings and windows per layer."""

from collections.abc import Sequence

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.core.plain_types import PlainDict
from modular_gpt.model.config import GPTConfig, LayerConfig
from modular_gpt.pretrained.config_map import HFConfig
from modular_gpt.pretrained.families.rope_config import rope, rope_to_hf
from modular_gpt.pretrained.family import activation, component_configs, hf_activation
from modular_gpt.pretrained.tensor_map import TensorMapping, affine

LAYER = "model.layers.{layer}"
ENDS = [
    TensorMapping("model.embed_tokens.weight", ("embedding.weight",)),
    TensorMapping("model.norm.weight", ("final_norm.weight",)),
    TensorMapping("lm_head.weight", ("head.weight",)),
]
NORMS = [
    TensorMapping(f"{LAYER}.input_layernorm.weight", ("blocks.{layer}.attention_norm.weight",)),
    TensorMapping(f"{LAYER}.post_attention_layernorm.weight", ("blocks.{layer}.ffn_norm.weight",)),
]
ATTENTION = [
    *affine(f"{LAYER}.self_attn.q_proj", "blocks.{layer}.attention.query"),
    *affine(f"{LAYER}.self_attn.k_proj", "blocks.{layer}.attention.key"),
    *affine(f"{LAYER}.self_attn.v_proj", "blocks.{layer}.attention.value"),
    *affine(f"{LAYER}.self_attn.o_proj", "blocks.{layer}.attention.out"),
]
GATED = [
    *affine(f"{LAYER}.mlp.gate_proj", "blocks.{layer}.ffn.gate"),
    *affine(f"{LAYER}.mlp.up_proj", "blocks.{layer}.ffn.up"),
    *affine(f"{LAYER}.mlp.down_proj", "blocks.{layer}.ffn.down"),
]
# defaults of settings that a config.json omits, unless the family has others
DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
LLAMA_RULES = (*ENDS, *NORMS, *ATTENTION, *GATED)


def decoder(settings: HFConfig) -> PlainDict:
    """Convert the settings of a decoder with the setting names of Llama to ours."""
    n_heads = settings["num_attention_heads"]
    n_kv_heads = settings["num_key_value_heads"] or n_heads
    return {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["hidden_size"],
        "n_heads": n_heads,
        "n_layers": settings["num_hidden_layers"],
        "context_length": settings["max_position_embeddings"],
        "bias": False,
        "attention": {
            "name": "mha" if n_kv_heads == n_heads else "gqa",
            "n_kv_heads": n_kv_heads,
            "head_dim": settings["head_dim"] or settings["hidden_size"] // n_heads,
            "dropout": float(settings["attention_dropout"]),
        },
        "ffn": {
            "name": "swiglu",
            "hidden": settings["intermediate_size"],
            "activation": activation(settings["hidden_act"]),
        },
        "norm": {"name": "rmsnorm", "eps": settings["rms_norm_eps"]},
        "pos": rope(settings),
        "tie_embeddings": settings["tie_word_embeddings"],
        "init_std": settings["initializer_range"],
    }


LLAMA_SLOTS = {"attention": "mha", "ffn": "swiglu", "norm": "rmsnorm", "pos": "rope"}


def decoder_to_hf(config: GPTConfig, layers: list[LayerConfig]) -> PlainDict:
    """Convert our config to the settings of a config.json; the inverse of ``decoder``."""
    attention, ffn, norm, pos = component_configs(layers[0])
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": ffn.hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": hf_activation(ffn.activation),
        "max_position_embeddings": config.context_length,
        "initializer_range": config.init_std,
        "rms_norm_eps": norm.eps,
        "rope_parameters": rope_to_hf(pos),
        "attention_dropout": attention.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }


def windows(types: Sequence[str], window: int | None) -> tuple[int | None, PlainDict]:
    """Convert the attention type of each layer to the window of all layers and a pattern of layers that differ."""
    for layer_type in types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise CheckpointError(unknown("layer type", str(layer_type), ["full_attention", "sliding_attention"]))
    if window is None or "sliding_attention" not in types:
        return None, {}
    if "full_attention" not in types:
        return window, {}
    names = ["sliding" if layer_type == "sliding_attention" else "base" for layer_type in types]
    variants = {"sliding": {"attention": {"window": window}}}
    return None, {"name": "windows", "variants": variants, "cycle": shortest_cycle(names)}


def windows_to_hf(layers: list[LayerConfig]) -> PlainDict:
    """Convert our layers to attention types and a window; the inverse of ``windows``."""
    widths = [component_configs(layer)[0].window for layer in layers]
    types = ["full_attention" if width is None else "sliding_attention" for width in widths]
    window = next((width for width in widths if width is not None), None)
    return {"layer_types": types, "sliding_window": window, "use_sliding_window": window is not None}


def shortest_cycle(names: list[str]) -> list[str]:
    """The shortest prefix of ``names`` whose repetition, possibly cut off, is ``names``."""
    lengths = range(1, len(names) + 1)
    return next(names[:n] for n in lengths if all(name == names[i % n] for i, name in enumerate(names)))
