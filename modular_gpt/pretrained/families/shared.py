"""What the families that descend from Llama have in common: names of tensors, rotary positions, windows per layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modular_gpt.core.errors import CheckpointError, unknown
from modular_gpt.pretrained.family import Settings, activation
from modular_gpt.pretrained.rules import Rule, affine

LAYER = "model.layers.{layer}"
ENDS = [
    Rule("model.embed_tokens.weight", ("embedding.weight",)),
    Rule("model.norm.weight", ("final_norm.weight",)),
    Rule("lm_head.weight", ("head.weight",)),
]
NORMS = [
    Rule(f"{LAYER}.input_layernorm.weight", ("blocks.{layer}.attention_norm.weight",)),
    Rule(f"{LAYER}.post_attention_layernorm.weight", ("blocks.{layer}.ffn_norm.weight",)),
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
# what a config.json leaves out has this value, unless the family says otherwise
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


def decoder(settings: Settings) -> dict[str, Any]:
    """Our settings of a decoder whose sizes are named as in Llama."""
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


def rope(settings: Settings) -> dict[str, Any]:
    """Rotary positions, written as ``rope_parameters`` or, before that, as ``rope_theta`` and ``rope_scaling``."""
    given = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in given.values()):
        raise CheckpointError("the checkpoint has rotary positions per layer type, which are not supported")
    kind = given.get("rope_type", given.get("type", "default"))
    theta = given["rope_theta"] if "rope_theta" in given else settings["rope_theta"]
    partial = given.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise CheckpointError(f"the checkpoint has partial_rotary_factor={partial}, which is not supported: only 1 is")
    position = {"name": "rope", "theta": float(theta)}
    if kind == "default":
        return position
    if kind not in SCALINGS:
        raise CheckpointError(unknown("rope scaling", str(kind), ["default", *SCALINGS]))
    return {**position, "scaling": {"kind": kind, **SCALINGS[kind](given, settings["max_position_embeddings"])}}


def _original_length(given: Settings, length: int) -> int:
    return given.get("original_max_position_embeddings") or length


def _yarn(given: Settings, length: int) -> dict[str, Any]:
    original = _original_length(given, length)
    factor = given.get("factor") or length / original
    magnitude = given.get("attention_factor")
    if magnitude is None and given.get("mscale") and given.get("mscale_all_dim"):
        magnitude = yarn_magnitude(factor, given["mscale"]) / yarn_magnitude(factor, given["mscale_all_dim"])
    return {
        "factor": factor,
        "original_context_length": original,
        "beta_fast": given.get("beta_fast") or 32,
        "beta_slow": given.get("beta_slow") or 1,
        "truncate": given.get("truncate", True),
        "attention_factor": magnitude,
    }


def yarn_magnitude(factor: float, weight: float) -> float:
    """What queries and keys are multiplied by, with DeepSeek's ``weight`` on the logarithm."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


SCALINGS = {
    "linear": lambda given, length: {"factor": given["factor"]},
    "dynamic": lambda given, length: {"factor": given["factor"], "original_context_length": length},
    "llama3": lambda given, length: {
        "factor": given["factor"],
        "original_context_length": _original_length(given, length),
        "low_frequency_factor": given["low_freq_factor"],
        "high_frequency_factor": given["high_freq_factor"],
    },
    "yarn": _yarn,
}


def windows(types: Sequence[str], window: int | None) -> tuple[int | None, dict[str, Any]]:
    """From the kind of each layer: the window of all layers, and the pattern of those that differ."""
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise CheckpointError(unknown("layer type", str(kind), ["full_attention", "sliding_attention"]))
    if window is None or "sliding_attention" not in types:
        return None, {}
    if "full_attention" not in types:
        return window, {}
    names = ["sliding" if kind == "sliding_attention" else "base" for kind in types]
    variants = {"sliding": {"attention": {"window": window}}}
    return None, {"name": "windows", "variants": variants, "cycle": shortest_cycle(names)}


def shortest_cycle(names: list[str]) -> list[str]:
    """The shortest beginning whose repetition gives the whole list."""
    lengths = range(1, len(names) + 1)
    return next(names[:n] for n in lengths if all(name == names[i % n] for i, name in enumerate(names)))
